//! A service in Python that leaks by plan (`tests/targets/request_loop.py`).

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::super::targets::{Python, Target};
use super::{Books, Busy, Planted};
use crate::workspace;

/// The target, and what marks the line that leaks.
const SCRIPT: &str = "request_loop.py";
const MARK: &str = "# LEAK";

/// The service at work.
pub struct Service {
    target: Target,
    planted: Planted,
}

impl Service {
    /// Starts it, and its work. Fails when it does not answer.
    pub fn start(python: &Python) -> Result<Self> {
        let script = workspace::root().join("tests/targets").join(SCRIPT);
        let source = fs::read_to_string(&script).with_context(|| format!("read {}", script.display()))?;
        let line = line_with(&source, MARK).context("the service has no marked line")?;
        let mut target = Target::start(Command::new(&python.executable).arg(&script))?;
        if target.ask("go")? != "going" {
            bail!("the service does not go to work");
        }
        Ok(Self { target, planted: Planted::Line(format!("{SCRIPT}:{line}")) })
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.target.quit()
    }
}

impl Busy for Service {
    fn pid(&self) -> u32 {
        self.target.pid()
    }

    fn books(&mut self) -> Result<Books> {
        let answer = self.target.ask("count")?;
        books_in(&answer).with_context(|| format!("`count` was answered by `{answer}`"))
    }

    fn planted(&self) -> &Planted {
        &self.planted
    }
}

/// The number of the line that ends so.
fn line_with(source: &str, mark: &str) -> Option<usize> {
    source.lines().position(|line| line.ends_with(mark)).map(|position| position + 1)
}

fn books_in(answer: &str) -> Option<Books> {
    let numbers = answer.strip_prefix("count ")?.split(' ').map(str::parse);
    let [requests, _leaks, _blocks, leaked_bytes, list_bytes, ns] =
        numbers.collect::<Result<Vec<u64>, _>>().ok()?[..]
    else {
        return None;
    };
    Some(Books { requests, leaked_bytes, list_bytes, ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_read_from_an_answer() {
        let books = Books { requests: 1000, leaked_bytes: 5440, list_bytes: 88, ns: 7 };
        assert_eq!(books_in("count 1000 10 30 5440 88 7"), Some(books));
        for answer in ["count 1000 10 30 5440 88", "going", "count a 10 30 5440 88 7"] {
            assert_eq!(books_in(answer), None, "{answer}");
        }
    }

    #[test]
    fn the_leaking_line_is_marked_once() {
        let path = workspace::root().join("tests/targets").join(SCRIPT);
        let source = fs::read_to_string(path).expect("the target is there");
        let line = line_with(&source, MARK).expect("a marked line");
        assert!(source.lines().nth(line - 1).is_some_and(|line| line.contains("leaked.append(")));
        assert_eq!(source.matches(&format!("{MARK}\n")).count(), 1);
    }
}
