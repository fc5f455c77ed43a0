//! The pointers of one process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::copies::Image;
use super::error::RedirectError;
use crate::heap::{Interpreter, PythonAllocators};
use crate::target::{ProcessMemory, Target};

/// The pointers of one process, with what they hold and what they are to hold.
#[derive(Debug)]
pub struct Tables {
    tgid: u32,
    /// Of the image that was there when it was opened, whatever the process runs and whoever has its number later: once
    /// that image is gone nothing can be written any more.
    memory: File,
    words: Vec<Word>,
    image: Option<Image>,
}

/// One pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// Where it is: a multiple of 8.
    pub addr: u64,
    /// What it holds before.
    pub own: u64,
    /// What it is to hold.
    pub second: u64,
}

/// What became of a pointer that was to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is as it was.
    Own,
    /// It was written by us, and is as it was again.
    Restored,
    /// It holds what somebody else has written.
    Foreign,
    /// There is no such memory any more.
    Gone,
    /// It cannot be written.
    Failed,
}

impl Tables {
    /// Looks at a process: its tables must be those of pymalloc, unchanged.
    ///
    /// # Errors
    /// Why they cannot be written to.
    pub fn of(target: &Target) -> Result<Self, RedirectError> {
        let tgid = target.process.tgid;
        let cpython = target.cpython.as_ref().ok_or(RedirectError::NoPython(tgid))?;
        let found = cpython.redirect.as_ref();
        let found = found.map_err(|reason| RedirectError::Build { pid: tgid, reason: reason.clone() })?;
        let bias = target.bias(cpython.module).ok_or(RedirectError::NoPython(tgid))?;
        let at = |vaddr: u64| bias.wrapping_add(vaddr);
        let words: Vec<Word> = found
            .pointers
            .iter()
            .map(|pointer| Word { addr: at(pointer.vaddr), own: at(pointer.own), second: at(pointer.second) })
            .collect();
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{tgid}/mem"));
        let memory = memory.map_err(|source| RedirectError::Memory { pid: tgid, what: "open", source })?;
        let tables = Self { tgid, memory, words, image: Image::of(tgid) };
        tables.check(target)?;
        Ok(tables)
    }

    fn check(&self, target: &Target) -> Result<(), RedirectError> {
        let now = self.words.iter().map(|word| self.read(word)).collect::<Result<Vec<_>, _>>()?;
        let mut pairs = self.words.iter().zip(&now);
        if pairs.clone().all(|(word, now)| *now == word.own) {
            return Ok(());
        }
        if pairs.all(|(word, now)| *now == word.own || *now == word.second) {
            return Err(RedirectError::Already(self.tgid));
        }
        let told = ProcessMemory::open(self.tgid).ok().and_then(|memory| {
            let interpreter = Interpreter::open(target).ok()?;
            PythonAllocators::read(&interpreter, &memory).ok()
        });
        let served = told.map_or_else(|| "functions that are not known".to_owned(), |told| told.to_string());
        Err(RedirectError::Served { pid: self.tgid, served })
    }

    /// Writes all pointers.
    ///
    /// # Errors
    /// When one cannot be written, or holds something else by now. Then some of the others are written.
    pub(super) fn write(&self) -> Result<(), RedirectError> {
        for word in &self.words {
            if self.read(word)? != word.own {
                return Err(RedirectError::Changed(self.tgid));
            }
            let written = write_word(&self.memory, word.addr, word.second);
            written.map_err(|source| RedirectError::Memory { pid: self.tgid, what: "write to", source })?;
            if self.read(word)? != word.second {
                return Err(RedirectError::Changed(self.tgid));
            }
        }
        Ok(())
    }

    fn read(&self, word: &Word) -> Result<u64, RedirectError> {
        match read_word(&self.memory, word.addr) {
            Ok(Some(now)) => Ok(now),
            Ok(None) => Err(RedirectError::Changed(self.tgid)),
            Err(source) => Err(RedirectError::Memory { pid: self.tgid, what: "read", source }),
        }
    }

    /// Restores the pointers that still hold what was written, in the opposite order.
    pub(super) fn restore(&self) -> impl Iterator<Item = Outcome> + '_ {
        self.restore_in(&self.memory)
    }

    /// The same in other memory with the same contents.
    pub(super) fn restore_in<'a>(&'a self, memory: &'a File) -> impl Iterator<Item = Outcome> + 'a {
        self.words.iter().rev().map(|word| word.restore(memory))
    }

    /// By what processes are known that have this one's memory by copy.
    pub(super) const fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// The process.
    pub(super) const fn tgid(&self) -> u32 {
        self.tgid
    }

    /// Its memory.
    pub(super) const fn memory(&self) -> &File {
        &self.memory
    }
}

impl Word {
    fn restore(&self, memory: &File) -> Outcome {
        match read_word(memory, self.addr) {
            Ok(Some(now)) if now == self.own => Outcome::Own,
            Ok(Some(now)) if now == self.second => match write_word(memory, self.addr, self.own) {
                Ok(()) => Outcome::Restored,
                Err(error) if is_end(&error) => Outcome::Gone,
                Err(_) => Outcome::Failed,
            },
            Ok(Some(_)) => Outcome::Foreign,
            // Without the interpreter's own variables it is another program, or none.
            Ok(None) | Err(_) => Outcome::Gone,
        }
    }
}

/// `None` where the memory is gone.
fn read_word(memory: &File, addr: u64) -> io::Result<Option<u64>> {
    let mut word = [0; 8];
    match memory.read_exact_at(&mut word, addr) {
        Ok(()) => Ok(Some(u64::from_le_bytes(word))),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// In one system call. The old value differs in one byte only, so that no part of it is seen with a part of the new.
fn write_word(memory: &File, addr: u64, word: u64) -> io::Result<()> {
    match memory.write_at(&word.to_le_bytes(), addr)? {
        8 => Ok(()),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Whether the kernel says that there is no memory behind the file any more.
fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Words of this process, as pointers that begin with 0x1000, 0x1100 and so on.
    pub fn own(words: &[u64]) -> Tables {
        let tgid = std::process::id();
        let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        let words = words.iter().map(|word| Word {
            addr: std::ptr::from_ref(word).addr() as u64,
            own: *word,
            second: *word + 4,
        });
        Tables { tgid, memory, words: words.collect(), image: Image::of(tgid) }
    }

    /// What a word is now, which is written from elsewhere.
    pub fn now(word: &u64) -> u64 {
        // SAFETY: a live reference. Volatile, since the compiler sees nobody change it.
        unsafe { std::ptr::read_volatile(word) }
    }

    #[test]
    fn only_what_was_written_is_restored() {
        let mut words = vec![0x1000, 0x1100, 0x1200, 0x1300];
        let tables = own(&words);
        tables.write().unwrap();
        assert_eq!(words.iter().map(now).collect::<Vec<_>>(), [0x1004, 0x1104, 0x1204, 0x1304]);
        // As the program itself may do.
        words[1] = 0x7777;
        words[2] = 0x1200;
        let outcomes: Vec<Outcome> = tables.restore().collect();
        assert_eq!(outcomes, [Outcome::Restored, Outcome::Own, Outcome::Foreign, Outcome::Restored]);
        assert_eq!(words.iter().map(now).collect::<Vec<_>>(), [0x1000, 0x7777, 0x1200, 0x1300]);
        assert!(tables.restore().all(|outcome| matches!(outcome, Outcome::Own | Outcome::Foreign)));
        // Nothing is written over what is not as it should be.
        assert!(matches!(tables.write(), Err(RedirectError::Changed(_))));
        assert_eq!(now(&words[1]), 0x7777);
    }

    #[test]
    fn memory_that_is_gone_is_no_failure() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let memory =
            File::options().read(true).write(true).open(format!("/proc/{}/mem", child.id())).unwrap();
        let word = Word { addr: 0x1000, own: 8, second: 12 };
        assert_eq!(word.restore(&memory), Outcome::Gone);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(word.restore(&memory), Outcome::Gone);
        assert!(matches!(read_word(&memory, 0x1000), Ok(None) | Err(_)));
    }
}
