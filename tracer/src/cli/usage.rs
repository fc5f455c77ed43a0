//! Wrong usage, in the two lines that every error has.

use crate::exit::Failure;

/// What clap says of arguments that it refused: the first paragraph on one line, and its tip as the hint.
pub fn failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let message = text.split("\n\n").next().map(one_line).unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned));
    let mut failure = Failure::usage(message);
    if let Some(tip) = tip {
        failure.hint = tip;
    }
    failure
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Cli;

    fn shown(arguments: &[&str]) -> String {
        failure(&Cli::try_parse_from(arguments).unwrap_err()).to_string()
    }

    #[test]
    fn a_refused_argument_is_named_with_a_hint() {
        assert_eq!(
            shown(&["memtrace"]),
            "memtrace: the following required arguments were not provided: --pid <PID>\n\
             hint: see `memtrace --help`"
        );
        assert_eq!(
            shown(&["memtrace", "-p", "1", "--min-sise", "4"]),
            "memtrace: unexpected argument '--min-sise' found\n\
             hint: a similar argument exists: '--min-size'"
        );
        let bad_value = shown(&["memtrace", "-p", "1", "-d", "5"]);
        assert_eq!(bad_value.lines().count(), 2, "{bad_value}");
        assert!(bad_value.contains("'5' for '--duration <DUR>'"), "{bad_value}");
    }
}
