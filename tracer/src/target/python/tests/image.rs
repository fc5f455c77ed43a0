//! Walks over the memory of real processes: as much of it as a walk reads is kept in files beside this one.
//!
//! A file is text: how the interpreter was found, the frames that the program told, and words by address.
//! `cargo test -p tracer --lib make_images -- --ignored` makes it anew for each interpreter that is there, and
//! for those that `MEMTRACE_TEST_PYTHONS` names (paths with colons between them).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use tracer_common::memory::ReadMemory;
use tracer_common::python::ThreadStorage;

use super::super::debug_offsets;
use super::super::thread_variable::ThreadVariable;
use super::super::versions::Offsets;
use super::super::{PythonFile, Storage};
use super::program::{PROGRAM, Program, pythons};
use super::walking::{Seen, Walked, walk};
use crate::target::{InlinedPolicy, Process, ProcessMemory, PythonVersion, Target};

/// Words by address. A page is there as a whole: of one that has words, those that no walk needs are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Words(BTreeMap<u64, u64>);

impl ReadMemory for Words {
    fn read_word(&self, addr: u64) -> Option<u64> {
        const PAGE_BYTES: u64 = 4096;
        let page = addr - addr % PAGE_BYTES;
        let is_there = || self.0.range(page..=page + (PAGE_BYTES - 1)).next().is_some();
        self.0.get(&addr).copied().or_else(|| is_there().then_some(0))
    }
}

/// Notes every word that is read.
struct Recording {
    memory: ProcessMemory,
    words: RefCell<Words>,
}

impl ReadMemory for Recording {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let word = self.memory.read_word(addr)?;
        self.words.borrow_mut().0.insert(addr, word);
        Some(word)
    }
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    file: PythonFile,
    storage: Storage,
    fs_base: u64,
    frames: Vec<Seen>,
    /// Frames of each run.
    runs: Vec<usize>,
    words: Words,
}

fn images() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/target/python/tests/images"))
}

/// What an interpreter of 3.13 on tells of itself at `runtime_addr`.
fn told(memory: &impl ReadMemory, runtime_addr: u64) -> Vec<u8> {
    let addrs = (runtime_addr..).step_by(8).take(debug_offsets::BYTES as usize / 8);
    addrs.map_while(|addr| memory.read_word(addr)).flat_map(u64::to_le_bytes).collect()
}

impl Image {
    fn walked(&self) -> Walked {
        match self.file.layout(&self.words, 0, self.storage) {
            Ok(layout) => walk(&self.words, &layout, self.fs_base),
            Err(_) => Walked::default(),
        }
    }

    fn encode(&self) -> String {
        let mut text = String::new();
        let PythonVersion { major, minor, micro } = self.file.version;
        let mut line = |line: String| writeln!(text, "{line}").unwrap();
        line(format!("version {major} {minor} {}", micro.unwrap()));
        line(format!("free-threaded {}", u8::from(self.file.is_free_threaded)));
        line(format!("runtime {:x}", self.file.runtime_vaddr));
        line(format!("code-type {:x}", self.file.code_type_vaddr.unwrap()));
        for (name, variable) in [("attached", &self.file.attached), ("stored", &self.file.stored)] {
            if let Some(ThreadVariable::Fixed(distance)) = variable {
                line(format!("{name} {distance}"));
            }
        }
        line(format!("storage {} {}", self.storage.form as u8, self.storage.offset));
        line(format!("thread {:x}", self.fs_base));
        for Seen { unit, line: number, name, file } in &self.frames {
            line(format!("frame {unit} {number} {name}\t{file}"));
        }
        line(format!("runs {}", self.runs.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")));
        let mut next = None;
        for (addr, word) in &self.words.0 {
            if next == Some(*addr) {
                write!(text, " {word:x}").unwrap();
            } else {
                let end = if next.is_some() { "\n" } else { "" };
                write!(text, "{end}{addr:x}: {word:x}").unwrap();
            }
            next = Some(addr + 8);
        }
        text.push('\n');
        text
    }

    fn decode(text: &str) -> Self {
        let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
        let mut values = BTreeMap::new();
        let mut frames = Vec::new();
        let mut words = Words::default();
        for line in text.lines() {
            if let Some((start, content)) = line.split_once(": ") {
                let addrs = (hex(start)..).step_by(8);
                words.0.extend(addrs.zip(content.split(' ').map(hex)));
            } else if let Some(frame) = line.strip_prefix("frame ") {
                frames.push(Seen::decode(frame));
            } else {
                let (name, value) = line.split_once(' ').unwrap();
                values.insert(name, value);
            }
        }
        let numbers = |name: &str| -> Vec<i64> {
            values
                .get(name)
                .map_or(Vec::new(), |value| value.split(' ').map(|n| n.parse().unwrap()).collect())
        };
        let version = numbers("version");
        let version =
            PythonVersion { major: version[0] as u8, minor: version[1] as u8, micro: Some(version[2] as u8) };
        let is_free_threaded = numbers("free-threaded") == [1];
        let runtime_vaddr = hex(values["runtime"]);
        let offsets = if version.minor < 13 {
            Offsets::of(version.minor, is_free_threaded)
        } else {
            debug_offsets::offsets(&told(&words, runtime_vaddr), version.minor, is_free_threaded)
        };
        let variable = |name: &str| numbers(name).first().map(|distance| ThreadVariable::Fixed(*distance));
        let storage = numbers("storage");
        let form = if storage[0] == 1 { ThreadStorage::Glibc } else { ThreadStorage::Musl };
        Self {
            file: PythonFile {
                version,
                is_free_threaded,
                offsets: offsets.unwrap(),
                runtime_vaddr,
                code_type_vaddr: Some(hex(values["code-type"])),
                attached: variable("attached"),
                stored: variable("stored"),
                eval: Vec::new(),
            },
            storage: Storage { form, offset: storage[1] as u16 },
            fs_base: hex(values["thread"]),
            frames,
            runs: numbers("runs").into_iter().map(|count| count as usize).collect(),
            words,
        }
    }
}

/// The images in the tree, with their names.
fn kept() -> Vec<(String, Image)> {
    let entries = fs::read_dir(images()).unwrap().map(|entry| entry.unwrap().path());
    let mut kept: Vec<(String, Image)> = entries
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, Image::decode(&fs::read_to_string(path).unwrap()))
        })
        .collect();
    kept.sort_by(|left, right| left.0.cmp(&right.0));
    kept
}

#[test]
fn frames_in_memory_of_every_version_are_found() {
    let kept = kept();
    for minor in 8..=15 {
        assert!(kept.iter().any(|(_, image)| image.file.version.minor == minor), "no image of 3.{minor}");
    }
    for (name, image) in kept {
        let walked = image.walked();
        assert_eq!(walked.frames, image.frames, "{name}");
        assert_eq!(walked.runs.iter().map(|run| run.1).collect::<Vec<_>>(), image.runs, "{name}");
        assert!(walked.is_complete && walked.differs.is_none(), "{name}");
        assert_eq!(Image::decode(&image.encode()), image, "{name}");
    }
}

#[test]
fn a_walk_over_damaged_memory_ends() {
    for (name, image) in kept() {
        let sound = image.walked();
        for addr in image.words.0.keys() {
            for damage in [None, Some(0), Some(u64::MAX), Some(*addr), Some(image.fs_base), Some(0x4141)] {
                let mut words = image.words.clone();
                match damage {
                    Some(word) => words.0.insert(*addr, word),
                    None => words.0.remove(addr),
                };
                let damaged =
                    Image { words, ..Image { frames: Vec::new(), runs: Vec::new(), ..copy(&image) } };
                let walked = damaged.walked();
                // What is found before the damage is what was there.
                assert!(walked.frames.len() <= sound.frames.len() + 1000, "{name}");
            }
        }
    }
}

fn copy(image: &Image) -> Image {
    Image {
        file: image.file.clone(),
        storage: image.storage,
        fs_base: image.fs_base,
        frames: image.frames.clone(),
        runs: image.runs.clone(),
        words: Words::default(),
    }
}

#[test]
#[ignore = "makes the images anew"]
fn make_images() {
    let program = fs::read_to_string(PROGRAM).unwrap();
    fs::create_dir_all(images()).unwrap();
    for python in pythons() {
        // Not by its path, which would be in the image. Of a free-threaded one in a thread of its own, which has
        // bytecode of its own.
        let is_free = python.to_str().unwrap().ends_with('t');
        let arguments =
            if is_free { &["-c", &program, "small", "thread"][..] } else { &["-c", &program, "small"] };
        let mut program = Program::start(&python, arguments);
        program.await_at("small");
        let process = Process::open(program.tgid()).unwrap();
        let target = Target::observe(process, InlinedPolicy::LeaveOut).unwrap();
        let recording = Recording {
            memory: ProcessMemory::open(program.tgid()).unwrap(),
            words: RefCell::new(Words::default()),
        };
        let cpython = target.cpython.as_ref().unwrap();
        let found = cpython.file.as_ref().unwrap();
        let bias = target.bias(cpython.module).unwrap();
        let storage = target.thread_storage().unwrap();
        let layout = found.layout(&recording, bias, storage).unwrap();
        let fs_base = program.told["small"].fs_base;
        let walked = walk(&recording, &layout, fs_base);
        assert_eq!(walked.frames, program.told["small"].frames, "{}", python.display());
        let runtime_vaddr = bias.wrapping_add(found.runtime_vaddr);
        if layout.minor >= 13 {
            told(&recording, runtime_vaddr);
        }
        let distance = |offset: i64| (offset != 0).then_some(ThreadVariable::Fixed(offset));
        let image = Image {
            file: PythonFile {
                runtime_vaddr,
                code_type_vaddr: found.code_type_vaddr.map(|vaddr| bias.wrapping_add(vaddr)),
                attached: distance(layout.attached_tls_offset),
                stored: distance(layout.stored_tls_offset),
                eval: Vec::new(),
                ..found.clone()
            },
            storage,
            fs_base,
            frames: walked.frames,
            runs: walked.runs.iter().map(|run| run.1).collect(),
            words: recording.words.into_inner(),
        };
        let build = if cpython.stripped { "stripped" } else { "symbols" };
        let free = if found.is_free_threaded { "t" } else { "" };
        let name = format!("{}{free}-{build}.txt", found.version);
        fs::write(images().join(name), image.encode()).unwrap();
    }
}
