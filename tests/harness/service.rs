//! A Python service under full load that leaks by plan and keeps books (`targets/request_loop.py`).

use super::python::Python;
use super::report::Row;
use super::{Target, source_path};
use std::process::Command;

const SCRIPT: &str = "request_loop.py";

/// What ends the line that leaks.
const MARK: &str = "# LEAK";

/// The running service. Killed when dropped.
pub struct Service {
    /// For everything else.
    pub target: Target,
    line: u32,
}

/// What it has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// Requests.
    pub requests: u64,
    /// Dicts leaked.
    pub leaks: u64,
    /// Their blocks: each has its keys and a string.
    pub blocks: u64,
    /// The bytes of these.
    pub bytes: u64,
    /// Bytes of the one block in which the list holds them, at the same line.
    pub list_bytes: u64,
    /// When that was.
    pub ns: u64,
}

impl Books {
    /// Requests per second since then.
    pub fn rate_since(self, then: Self) -> f64 {
        (self.requests - then.requests) as f64 * 1e9 / (self.ns - then.ns) as f64
    }

    /// Blocks and bytes at the leaking line that are outstanding and were allocated since then. A list that grew is a
    /// new block.
    pub fn leaked_since(self, then: Self) -> (u64, u64) {
        let grew = self.list_bytes != then.list_bytes;
        let list = if grew { self.list_bytes } else { 0 };
        (self.blocks - then.blocks + u64::from(grew), self.bytes - then.bytes + list)
    }
}

impl Service {
    /// Starts it. It rests.
    pub fn start(python: &Python) -> Self {
        let script = source_path(SCRIPT);
        let source = std::fs::read_to_string(&script).expect("read the service");
        let line = source.lines().position(|line| line.ends_with(MARK)).expect("a marked line") + 1;
        let target = Target::start_command(Command::new(&python.executable).arg(script));
        Self { target, line: u32::try_from(line).expect("a short program") }
    }

    /// Its process id.
    pub fn pid(&self) -> String {
        self.target.pid().to_string()
    }

    /// Lets it work until told to rest.
    pub fn go(&mut self) {
        assert_eq!(self.target.ask("go"), ["going"]);
    }

    /// Its books when it has stopped working.
    pub fn rest(&mut self) -> Books {
        self.ask("rest")
    }

    /// Its books now.
    pub fn books(&mut self) -> Books {
        self.ask("count")
    }

    fn ask(&mut self, command: &str) -> Books {
        let answer = self.target.ask(command);
        let numbers: Vec<u64> = answer[1..].iter().map(|word| word.parse().expect("a number")).collect();
        let [requests, leaks, blocks, bytes, list_bytes, ns] = numbers[..] else { panic!("{answer:?}") };
        Books { requests, leaks, blocks, bytes, list_bytes, ns }
    }

    /// Whether the innermost line of Python in a row is the one that leaks.
    pub fn leaks_in(&self, row: &Row) -> bool {
        row.python_frame().is_some_and(|frame| {
            let file = frame.file.as_deref().unwrap_or_default();
            file.ends_with(SCRIPT) && frame.line == Some(self.line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::python::find;

    #[test]
    fn the_service_answers_while_it_works() {
        for shared in [true, false] {
            let mut service = Service::start(&find(shared));
            service.go();
            let before = service.books();
            let after = std::iter::repeat_with(|| service.books());
            let after = after.into_iter().find(|after| after.leaks > before.leaks + 1);
            let after = after.expect("there is no end to answers");
            assert!(
                (99..=101).contains(&(after.requests / after.leaks)),
                "a leak in 100 requests: {after:?}"
            );
            assert_eq!(after.blocks, 3 * after.leaks);
            assert!(after.bytes / after.leaks > 400 && after.list_bytes >= 8 * after.leaks, "{after:?}");
            assert!(after.rate_since(before) > 0.0);
            let rested = service.rest();
            assert_eq!(service.books().requests, rested.requests);
            service.target.quit();
        }
    }

    #[test]
    fn a_list_that_grew_is_outstanding_as_a_whole() {
        let then = Books { requests: 0, leaks: 10, blocks: 30, bytes: 5440, list_bytes: 88, ns: 0 };
        let now = Books { leaks: 11, blocks: 33, bytes: 5984, ..then };
        assert_eq!(now.leaked_since(then), (3, 544));
        assert_eq!(Books { list_bytes: 120, ..now }.leaked_since(then), (4, 664));
    }
}
