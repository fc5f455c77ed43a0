//! Running other programs: shown before they run, and failing with their name.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints a line about what happens next.
pub fn say(what: impl std::fmt::Display) {
    eprintln!("xtask: {what}");
}

/// Shows and runs a command with our own standard streams. Fails when it cannot start or exits other than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    eprintln!("  $ {line}");
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command quietly and returns what it wrote to standard output.
/// Fails as [`run`] does, with what it wrote to standard error.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of `{line}`"))
}

/// The command as one would type it: variables set, program, arguments.
pub fn shown(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        // The encoded flags hold control characters; the eBPF build prints them in words itself.
        let value = value.filter(|_| name != "CARGO_ENCODED_RUSTFLAGS")?;
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Whether this process has the effective user id 0: the kernel makes it the owner of `/proc/self`.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|self_dir| self_dir.uid() == 0)
}

/// Whether a program of this name is in `PATH`.
pub fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cc");
        command.env("LC_ALL", "C").arg("-o").arg("a b").arg("it's").arg("");
        assert_eq!(shown(&command), r"LC_ALL=C cc -o 'a b' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_named_with_its_words() {
        let error = capture(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
            .expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3") && text.ends_with("broken"), "{text}");
    }
}
