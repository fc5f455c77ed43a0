//! The directory of the cache: whom it belongs to, and how large it may grow.
//!
//! All work goes by its descriptor: what was checked when it was opened stays what is used, wherever its path
//! leads later.

use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, fstat, futimens, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// How the names of entries end. Nothing else in the directory is counted or removed.
const SUFFIX: &str = ".table";

/// How the names of files that are being written start.
const UNFINISHED: &str = ".unfinished-";

/// A file that is being written for longer than this was left by a memtrace that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);

/// Modes that let others write.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);

/// An open directory that nobody else can write to.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: OwnedFd,
    /// The most that all entries together may take, bytes.
    max_bytes: u64,
    /// What they take, as far as this process knows; `None` until it matters.
    taken_bytes: Mutex<Option<u64>>,
}

/// One file of the cache.
struct Entry {
    name: CString,
    size_bytes: u64,
    /// When it was used last, seconds since 1970 and nanoseconds.
    used: (i64, i64),
}

impl Directory {
    /// Opens the directory at `path`; makes it where there is none.
    ///
    /// # Errors
    /// When that fails, or when others may write there: what they put there must not be believed.
    pub(super) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
        if !is_own(&fstat(&descriptor)?) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may write there"));
        }
        Ok(Self { descriptor, max_bytes, taken_bytes: Mutex::new(None) })
    }

    /// The entry `name`, if there is one.
    pub(super) fn open_entry(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.descriptor, format!("{name}{SUFFIX}"), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        if !is_own(&stat) || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another may have written it"));
        }
        Ok(Some(File::from(file)))
    }

    /// Notes that the entry `file` is in use. On a file system that is read only nothing is noted.
    pub(super) fn touch(&self, file: &File) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(file, &Timestamps { last_access: now, last_modification: now });
    }

    /// Makes or replaces the entry `name`, of `size_bytes`, by what `write` writes. Whoever reads it meanwhile
    /// finds the old one or the new one, and nothing in between.
    pub(super) fn write_entry(
        &self,
        name: &str,
        size_bytes: u64,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        self.make_room(size_bytes)?;
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = format!("{UNFINISHED}{}-{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.descriptor, &unfinished, flags, Mode::RUSR | Mode::WUSR)?;
        let done = write(&mut File::from(file)).and_then(|()| {
            let name = format!("{name}{SUFFIX}");
            Ok(renameat(&self.descriptor, &unfinished, &self.descriptor, name)?)
        });
        if done.is_err() {
            let _ = unlinkat(&self.descriptor, &unfinished, AtFlags::empty());
        }
        done
    }

    /// Removes entries, those first that were not used for the longest time, until there is room for one more
    /// of `size_bytes`.
    fn make_room(&self, size_bytes: u64) -> io::Result<()> {
        if size_bytes > self.max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut taken_bytes = self.taken_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = *taken_bytes
            && taken + size_bytes <= self.max_bytes
        {
            *taken_bytes = Some(taken + size_bytes);
            return Ok(());
        }
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| entry.used);
        let mut taken = entries.iter().map(|entry| entry.size_bytes).sum::<u64>() + size_bytes;
        if taken > self.max_bytes {
            // Some more than needed, so that not every new entry needs a look at all old ones.
            let goal = (self.max_bytes - self.max_bytes / 8).max(size_bytes);
            for entry in entries {
                if taken <= goal {
                    break;
                }
                let _ = unlinkat(&self.descriptor, &entry.name, AtFlags::empty());
                taken -= entry.size_bytes;
            }
        }
        *taken_bytes = Some(taken);
        Ok(())
    }

    /// All entries. Removes what was never finished.
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let abandoned_before = i64::try_from(now.saturating_sub(ABANDONED_AFTER).as_secs()).unwrap_or(0);
        let mut entries = Vec::new();
        for found in Dir::read_from(&self.descriptor)? {
            let found = found?;
            let name = found.file_name();
            let is_unfinished = name.to_bytes().starts_with(UNFINISHED.as_bytes());
            if !is_unfinished && !name.to_bytes().ends_with(SUFFIX.as_bytes()) {
                continue;
            }
            // Another memtrace may have removed it.
            let Ok(stat) = statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if is_unfinished {
                if stat.st_mtime < abandoned_before {
                    let _ = unlinkat(&self.descriptor, name, AtFlags::empty());
                }
                continue;
            }
            let used = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
            let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
            entries.push(Entry { name: name.to_owned(), size_bytes, used });
        }
        Ok(entries)
    }
}

/// Whether only this user can write to a file.
fn is_own(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(OTHERS_WRITE)
}
