//! What `/proc` says about threads.

use std::fs;

/// Some lines of `/proc/ID/status`. An id of a thread that is not the first is found there too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// Its process.
    pub(super) tgid: u32,
    /// The process's parent.
    pub(super) parent: u32,
    /// The thread that traces it; 0 if none.
    pub(super) tracer_tid: u32,
    /// `R`, `S`, `D`, `T`, `t`, `Z` or `X`.
    pub(super) state: char,
}

impl Status {
    /// Reads it; `None` if there is no such thread.
    pub(super) fn read(tid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{tid}/status")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            // The name in the first line may hold anything but a line's end.
            text.lines().skip(1).find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        Some(Self {
            tgid: value("Tgid")?.parse().ok()?,
            parent: value("PPid")?.parse().ok()?,
            tracer_tid: value("TracerPid")?.parse().ok()?,
            state: value("State")?.chars().next()?,
        })
    }

    /// Whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Name of the thread, for messages.
pub(super) fn name(tid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
    match name.trim_end() {
        "" => "another program".to_owned(),
        name => name.to_owned(),
    }
}

/// Number of the system call that the thread is in; `None` if it is in none, runs, or is gone. Needs the right
/// to trace it.
pub(super) fn system_call(tid: u32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    // `running` has no number, and no call is -1.
    text.split_whitespace().next()?.parse().ok().filter(|&number| number >= 0)
}

/// Ids of all processes.
pub(super) fn processes() -> Vec<u32> {
    ids("/proc")
}

/// Ids of the threads of a process; empty if there is none.
pub(super) fn threads(tgid: u32) -> Vec<u32> {
    ids(&format!("/proc/{tgid}/task"))
}

fn ids(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_parsed_whatever_the_name() {
        let text = "Name:\tTgid: 1\nUmask:\t0022\nState:\tZ (zombie)\nTgid:\t12\nNgid:\t0\nPid:\t13\nPPid:\t4\n\
                    TracerPid:\t5\nUid:\t0\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(status, Status { tgid: 12, parent: 4, tracer_tid: 5, state: 'Z' });
        assert!(status.has_ended());
        assert_eq!(Status::parse("Name:\tx\nState:\tR\n"), None);
    }

    #[test]
    fn threads_and_their_calls_are_found() {
        let (tell_tid, tid) = std::sync::mpsc::channel();
        let (end, wait) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
        let thread = std::thread::spawn(move || {
            // SAFETY: a system call without arguments.
            tell_tid.send(unsafe { libc::gettid() } as u32).unwrap();
            std::io::Read::read(&mut &wait, &mut [0]).unwrap()
        });
        let tid = tid.recv().unwrap();
        assert!(threads(std::process::id()).contains(&tid));
        assert!(processes().contains(&std::process::id()));
        assert!(!processes().contains(&tid));
        assert_eq!(Status::read(tid).unwrap().tgid, std::process::id());
        while system_call(tid) != Some(libc::SYS_read) {
            std::thread::yield_now();
        }
        drop(end);
        assert_eq!(thread.join().unwrap(), 0);
    }
}
