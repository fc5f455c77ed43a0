//! Real directories: what is kept, what is believed, what is removed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::super::{Table, compile};
use super::{MAX_BYTES, TableCache};

const BUILD_ID: &str = "0123456789abcdef0123456789abcdef01234567";

/// The loader: a file that every machine has, with some thousand rows.
fn library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    PathBuf::from(paths.find(|path| path.contains("/ld-")).unwrap())
}

/// A cache that keeps everything, and its directory.
fn cache(max_bytes: u64) -> (TempDir, TableCache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("unwind"), max_bytes);
    assert!(cache.directory.is_some());
    (dir, cache)
}

fn open(path: &Path, max_bytes: u64) -> TableCache {
    TableCache { least_words: 0, ..TableCache::open_at(path, max_bytes) }
}

fn entries(dir: &TempDir) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(dir.path().join("unwind")).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

fn the_entry(dir: &TempDir) -> PathBuf {
    let entries = entries(dir);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

fn compiled(path: &Path) -> Table {
    compile(&fs::read(path).unwrap(), None).unwrap()
}

/// Bytes of one row's rule in the file of a table, where a change cannot be seen by the form of it.
const IN_A_RULE: usize = 256 + 8 * 1500 + 5;

#[test]
fn a_table_is_kept_and_loaded() {
    let (dir, cache) = cache(MAX_BYTES);
    let library = library();
    let file = File::open(&library).unwrap();
    let table = cache.table_of(Some(BUILD_ID), &file).unwrap();
    assert_eq!(table, compiled(&library));
    let path = the_entry(&dir);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&path).unwrap().len(), 256 + 8 * table.words.len() as u64);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    // A cache that keeps only larger ones loads it, too, and notes that it was used.
    let other = TableCache {
        least_words: table.words.len() + 1,
        ..TableCache::open_at(path.parent().unwrap(), MAX_BYTES)
    };
    let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(other.table_of(Some(BUILD_ID), &file).unwrap(), table);
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > long_ago + Duration::from_secs(900_000));
}

#[test]
fn what_has_an_odd_build_id_or_is_small_is_not_kept() {
    let (dir, cache) = cache(MAX_BYTES);
    let file = File::open(library()).unwrap();
    for build_id in ["", "../../../tmp/x", &*"ab".repeat(65)] {
        cache.table_of(Some(build_id), &file).unwrap();
    }
    let words = compiled(&library()).words.len();
    let cache = TableCache { least_words: words + 1, ..cache };
    cache.table_of(Some(BUILD_ID), &file).unwrap();
    assert!(entries(&dir).is_empty());
    let cache = TableCache { least_words: words, ..cache };
    cache.table_of(Some(BUILD_ID), &file).unwrap();
    the_entry(&dir);
}

#[test]
fn a_damaged_entry_is_replaced() {
    let (dir, cache) = cache(MAX_BYTES);
    let library = library();
    let file = File::open(&library).unwrap();
    let table = cache.table_of(Some(BUILD_ID), &file).unwrap();
    let path = the_entry(&dir);
    let whole = fs::read(&path).unwrap();
    let damaged = |at: usize, by: u8| {
        let mut bytes = whole.clone();
        bytes[at] ^= by;
        bytes
    };
    let mut cases = vec![
        Vec::new(),
        whole[..100].to_vec(),
        whole[..256].to_vec(),
        whole[..whole.len() - 8].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&*whole, &[0; 8]].concat(),
    ];
    // Magic, format, checksum, compiler, each number of the geometry, key, behind the key, words.
    cases.extend([0, 8, 12, 16, 24, 28, 32, 36, 40, 85, 250, 256, IN_A_RULE].map(|at| damaged(at, 1)));
    cases.extend([27, 31, 35, 39].map(|at| damaged(at, 0x80)));
    cases.push(damaged(whole.len() - 1, 0x10));
    for (number, bytes) in cases.into_iter().enumerate() {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.table_of(Some(BUILD_ID), &file).unwrap(), table, "case {number}");
        assert!(fs::read(&path).unwrap() == whole, "case {number} was not replaced");
    }
    assert_eq!(the_entry(&dir), path);
}

#[test]
fn an_entry_is_believed_where_its_checksum_is_right() {
    // The other side of the test above: it is the file that is used.
    let (dir, cache) = cache(MAX_BYTES);
    let file = File::open(library()).unwrap();
    let table = cache.table_of(Some(BUILD_ID), &file).unwrap();
    let path = the_entry(&dir);
    let mut bytes = fs::read(&path).unwrap();
    bytes[IN_A_RULE] ^= 1;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    bytes[12..16].copy_from_slice(&hasher.finalize().to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let loaded = cache.table_of(Some(BUILD_ID), &file).unwrap();
    assert_ne!(loaded, table);
    assert_eq!(loaded.words.iter().zip(&table.words).filter(|(one, other)| one != other).count(), 1);
}

#[test]
fn a_file_whose_code_lies_elsewhere_has_another_table() {
    let (dir, cache) = cache(MAX_BYTES);
    let library = library();
    let mut edited = fs::read(&library).unwrap();
    // The last loaded segment's offset in the file, as a tool would change it that makes room in front.
    let headers = (64..).step_by(56).take(usize::from(edited[0x38]));
    let at = headers.filter(|at| edited[*at..at + 4] == [1, 0, 0, 0]).last().unwrap();
    edited[at + 8 + 1] ^= 0x10;
    let edited_path = dir.path().join("edited.so");
    fs::write(&edited_path, &edited).unwrap();
    for path in [&library, &edited_path] {
        cache.table_of(Some(BUILD_ID), &File::open(path).unwrap()).unwrap();
    }
    assert_eq!(entries(&dir).len(), 2);
}

#[test]
fn a_file_without_a_build_id_is_known_until_it_changes() {
    let (dir, cache) = cache(MAX_BYTES);
    let path = dir.path().join("copy.so");
    fs::copy(library(), &path).unwrap();
    let file = File::open(&path).unwrap();
    let table = cache.table_of(None, &file).unwrap();
    let first = the_entry(&dir);
    assert_eq!(cache.table_of(None, &file).unwrap(), table);
    assert_eq!(the_entry(&dir), first);
    // Another file in its place; the same file, touched.
    let other = dir.path().join("other.so");
    fs::copy(&path, &other).unwrap();
    cache.table_of(None, &File::open(&other).unwrap()).unwrap();
    assert_eq!(entries(&dir).len(), 2);
    File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    cache.table_of(None, &file).unwrap();
    assert_eq!(entries(&dir).len(), 3);
}

#[test]
fn a_directory_that_others_can_write_to_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    for (mode, is_used) in [(0o777, false), (0o720, false), (0o1777, false), (0o755, true), (0o700, true)] {
        fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
        assert_eq!(open(&shared, MAX_BYTES).directory.is_some(), is_used, "{mode:o}");
    }
    let link = dir.path().join("link");
    symlink(&shared, &link).unwrap();
    assert!(open(&link, MAX_BYTES).directory.is_none());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(open(&file, MAX_BYTES).directory.is_none());
    // Everything works without one.
    let library = library();
    let without = open(&file, MAX_BYTES);
    assert_eq!(without.table_of(Some(BUILD_ID), &File::open(&library).unwrap()).unwrap(), compiled(&library));
}

#[test]
fn an_entry_that_others_may_have_written_is_not_believed() {
    let (dir, cache) = cache(MAX_BYTES);
    let library = library();
    let file = File::open(&library).unwrap();
    let table = cache.table_of(Some(BUILD_ID), &file).unwrap();
    let path = the_entry(&dir);
    let whole = fs::read(&path).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, &whole).unwrap();

    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(cache.table_of(Some(BUILD_ID), &file).unwrap(), table);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(cache.table_of(Some(BUILD_ID), &file).unwrap(), table);
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert!(fs::read(&elsewhere).unwrap() == whole);
}

#[test]
fn what_was_not_used_for_long_is_removed_first() {
    let library = library();
    let size_bytes = 256 + 8 * compiled(&library).words.len() as u64;
    let (dir, cache) = cache(4 * size_bytes + size_bytes / 2);
    let file = File::open(&library).unwrap();
    let ids = ["aa", "bb", "cc", "dd"];
    let mine = dir.path().join("unwind/of-the-user");
    fs::write(&mine, vec![0; 1 << 20]).unwrap();
    let abandoned = dir.path().join("unwind/.unfinished-1-1");
    let being_written = dir.path().join("unwind/.unfinished-1-2");
    for path in [&abandoned, &being_written] {
        fs::write(path, "").unwrap();
    }
    let long_ago = |seconds: u64| SystemTime::now() - Duration::from_secs(seconds);
    File::options().write(true).open(&abandoned).unwrap().set_modified(long_ago(3600)).unwrap();
    let path_of = |id: &str| {
        let start = format!("{id}-");
        entries(&dir).into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&start))
    };
    for (age, id) in ids.iter().enumerate() {
        cache.table_of(Some(id), &file).unwrap();
        let entry = File::options().write(true).open(path_of(id).unwrap()).unwrap();
        entry.set_modified(long_ago(1000 - 100 * age as u64)).unwrap();
    }
    assert!(ids.iter().all(|id| path_of(id).is_some()));
    // Its use makes the oldest the newest.
    cache.table_of(Some("aa"), &file).unwrap();
    cache.table_of(Some("ee"), &file).unwrap();
    let left = ["aa", "bb", "cc", "dd", "ee"].map(|id| path_of(id).is_some());
    assert_eq!(left, [true, false, false, true, true]);
    assert_eq!([&mine, &abandoned, &being_written].map(|path| path.exists()), [true, false, true]);
    // What is too large for the whole cache removes nothing.
    let small = open(&dir.path().join("unwind"), size_bytes - 1);
    small.table_of(Some("ff"), &file).unwrap();
    assert!(path_of("ff").is_none() && path_of("aa").is_some());
}

#[test]
fn a_disk_that_cannot_be_written_is_no_error() {
    // As root, modes stop nobody: a limit on file sizes would, but for the whole process. So the directory is
    // removed behind the cache's back.
    let (dir, cache) = cache(MAX_BYTES);
    fs::remove_dir(dir.path().join("unwind")).unwrap();
    let library = library();
    let table = cache.table_of(Some(BUILD_ID), &File::open(&library).unwrap()).unwrap();
    assert_eq!(table, compiled(&library));
}

#[test]
fn writers_do_not_disturb_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unwind");
    let library = library();
    let table = compiled(&library);
    let file = File::open(&library).unwrap();
    let key = super::Key::new(Some(BUILD_ID), &file, &fs::read(&library).unwrap()).unwrap();
    // As many memtraces as threads, each with its own view of the directory.
    let caches: Vec<_> = (0..4).map(|_| open(&path, MAX_BYTES)).collect();
    let directory = |number: usize| caches[number].directory.as_ref().unwrap();
    super::entry::store(directory(0), &key, &table).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|number| {
                let (key, table) = (&key, &table);
                let directory = directory(number);
                scope.spawn(move || {
                    for _ in 0..50 {
                        super::entry::store(directory, key, table).unwrap();
                    }
                })
            })
            .collect();
        for number in 2..4 {
            let (key, table, done) = (&key, &table, &done);
            let directory = directory(number);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(super::entry::load(directory, key).unwrap().as_ref(), Some(table));
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(the_entry(&dir).extension().unwrap(), "table");
}
