//! Over memory that is made up, sound and damaged. Memory of real processes is walked by the tests of
//! `tracer`, which has the layouts.

use std::collections::HashMap;
use std::vec;
use std::vec::Vec;

use super::*;

const CODE_TYPE: u64 = 0xc0de;
const FS_BASE: u64 = 0x7000_0000;
const KEY_ADDR: u64 = 0x100;
const HEAD_ADDR: u64 = 0x200;
const CURRENT_ADDR: u64 = 0x300;
const STORAGE: u16 = 0x310;

/// Words by address; the others of a page that has some are 0.
#[derive(Clone, Default)]
struct Memory {
    words: HashMap<u64, u64>,
    gone_pages: Vec<u64>,
}

const PAGE: u64 = 4096;

impl ReadMemory for Memory {
    fn read_word(&self, addr: u64) -> Option<u64> {
        let aligned = |addr: u64| {
            let page = addr / PAGE;
            let is_there = self.words.keys().any(|known| known / PAGE == page);
            let word = self.words.get(&addr).copied().unwrap_or(0);
            (is_there && !self.gone_pages.contains(&page)).then_some(word)
        };
        let shift = addr % 8 * 8;
        let first = aligned(addr - addr % 8)?;
        if shift == 0 {
            return Some(first);
        }
        let second = aligned((addr - addr % 8).wrapping_add(8))?;
        Some(first >> shift | second << (64 - shift))
    }
}

impl Memory {
    /// One interpreter, whose key is 1, and a thread with the state at `thread`.
    fn new(thread: u64) -> Self {
        let mut memory = Self::default();
        memory.put(KEY_ADDR, &[1 | 1 << 32]);
        memory.put(HEAD_ADDR, &[0x400, 0x400]);
        memory.put(CURRENT_ADDR, &[0]);
        memory.put(FS_BASE + u64::from(STORAGE) + 16 + 8, &[thread]);
        memory
    }

    fn put(&mut self, addr: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.words.insert(addr + 8 * index as u64, *word);
        }
    }

    /// A code object: type, number of units, line, name, file, table, first traceable unit.
    fn put_code(&mut self, addr: u64, name: u64) {
        self.put(addr, &[CODE_TYPE, 100, 7 | 3 << 32, 1, name, 0xf110, 0x7ab10, 2]);
    }
}

/// A layout of no version: fields beside each other.
fn layout(flavor: Flavor) -> PythonLayout {
    let (previous, code, instruction) = (0, 8, 16);
    PythonLayout {
        tss_key_addr: KEY_ADDR,
        interpreters_addr: HEAD_ADDR,
        code_type_addr: CODE_TYPE,
        current_thread_addr: if (flavor as u8) < Flavor::Shim as u8 { CURRENT_ADDR } else { 0 },
        storage: ThreadStorage::Glibc as u8,
        storage_offset: STORAGE,
        flavor: flavor as u8,
        thread: ThreadLayout {
            next: 0,
            frame: 8,
            c_frame: if flavor == Flavor::CFrame { 24 } else { 0 },
            c_frame_current: if flavor == Flavor::EntryMark { 8 } else { ThreadLayout::NO_C_FRAME },
            thread_id: 16,
            interpreter_next: 0,
            interpreter_threads: 8,
            base_frame: 0,
        },
        frame: FrameLayout {
            read_words: 4,
            previous,
            code,
            instruction,
            owner: 24,
            is_entry: 25,
            c_frame_previous: 0,
            shim_owner: 3,
            ..FrameLayout::default()
        },
        code: CodeLayout {
            read_words: 8,
            ob_type: 0,
            units: 8,
            first_line: 16,
            flags: 20,
            argcount: 24,
            kwonlyargcount: 28,
            name: 32,
            file: 40,
            table: 48,
            first_traceable: 56,
            bytecode: 0x1000,
            ..CodeLayout::default()
        },
        text: TextLayout {
            length: 0,
            state: 16,
            ascii_data: 24,
            compact_data: 40,
            bytes_size: 0,
            bytes_data: 8,
            kind_shift: 2,
            compact_bit: 5,
            reserved: [0; 2],
        },
        ..PythonLayout::default()
    }
}

/// Everything that a walk comes upon but what is skipped, and at most so many steps.
fn steps(memory: &Memory, layout: &PythonLayout) -> Vec<PythonStep> {
    let mut cursor = PythonCursor::default();
    let mut steps = Vec::new();
    if !cursor.start(memory, layout, FS_BASE, None) {
        return steps;
    }
    for _ in 0..200 {
        match cursor.step(memory, layout) {
            PythonStep::Skip => {}
            step @ (PythonStep::End | PythonStep::Lost) => {
                steps.push(step);
                break;
            }
            step => steps.push(step),
        }
    }
    steps
}

/// The same in short: code addresses and units, marks with `true`.
fn walked(memory: &Memory, layout: &PythonLayout) -> Vec<(u64, u32, bool)> {
    let mut steps = steps(memory, layout);
    let end = steps.pop();
    assert_eq!(end, Some(PythonStep::End), "behind {steps:x?}");
    let short = |step| match step {
        PythonStep::Frame { code_addr, unit, .. } => (code_addr, unit, false),
        PythonStep::EndOfRun { mark_addr } => (mark_addr, 0, true),
        _ => unreachable!(),
    };
    steps.into_iter().map(short).collect()
}

const CODES: [u64; 3] = [0x2_0000, 0x3_0010, 0x4_0020];

fn with_codes(thread: u64) -> Memory {
    let mut memory = Memory::new(thread);
    for code in CODES {
        memory.put_code(code, code + 0x100);
    }
    memory
}

/// Where the instruction of unit `unit` lies.
fn at(code: u64, unit: u64) -> u64 {
    code + 0x1000 + unit * 2
}

const BY_GENERATOR: u64 = OWNED_BY_GENERATOR as u64;
const IS_ENTRY: u64 = 1 << 8;
const IS_SHIM: u64 = 3;

#[test]
fn frames_without_marks_are_runs_of_one() {
    let mut memory = with_codes(0x500);
    memory.put(0x500, &[0, 0x600, FS_BASE]);
    memory.put(0x600, &[0x700, CODES[0], 0xffff_0000_0009, 0]);
    memory.put(0x700, &[0, CODES[1], 0xffff_ffff, 0]);
    let frames = [(CODES[0], 4, false), (0, 0, true), (CODES[1], NO_UNIT_YET, false), (0, 0, true)];
    assert_eq!(walked(&memory, &layout(Flavor::Plain)), frames);
}

#[test]
fn each_frame_of_3_10_has_a_mark() {
    let mut memory = with_codes(0x500);
    memory.put(0x500, &[0, 0x600, FS_BASE, 0x7f00]);
    memory.put(0x600, &[0x700, CODES[0], 9, 0]);
    memory.put(0x700, &[0x800, CODES[1], 5, 0]);
    memory.put(0x800, &[0, CODES[2], 6, 0]);
    memory.put(0x7f00, &[0x7f80]);
    let frames = [(CODES[0], 9), (CODES[1], 5), (CODES[2], 6)];
    let with_marks = |marks: [u64; 3]| {
        let frames = frames.iter().zip(marks);
        frames.flat_map(|((code, unit), mark)| [(*code, *unit, false), (mark, 0, true)]).collect::<Vec<_>>()
    };
    // The marks end, the frames do not.
    assert_eq!(walked(&memory, &layout(Flavor::CFrame)), with_marks([0x7f00, 0x7f80, 0]));
    memory.put(0x7f80, &[0x7fc0]);
    assert_eq!(walked(&memory, &layout(Flavor::CFrame)), with_marks([0x7f00, 0x7f80, 0x7fc0]));
}

#[test]
fn a_run_of_3_11_ends_with_its_entry() {
    let mut memory = with_codes(0x500);
    memory.put(0x500, &[0, 0x7f00, FS_BASE]);
    memory.put(0x7f00, &[0x7f80, 0x600]);
    memory.put(0x7f80, &[0, 0]);
    memory.put(0x600, &[0x700, CODES[0], at(CODES[0], 9), BY_GENERATOR]);
    memory.put(0x700, &[0x800, CODES[1], at(CODES[1], 5), IS_ENTRY]);
    memory.put(0x800, &[0, CODES[2], at(CODES[2], 99), IS_ENTRY]);
    let run = [(CODES[0], 9, false), (CODES[1], 5, false), (0x7f00, 0, true), (CODES[2], 99, false)];
    assert_eq!(walked(&memory, &layout(Flavor::EntryMark)), [&run[..], &[(0x7f80, 0, true)]].concat());
    // One that is being built is not shown, but its run ends with it.
    memory.put(0x700, &[0x800, CODES[1], at(CODES[1], 1), IS_ENTRY]);
    let run = [(CODES[0], 9, false), (0x7f00, 0, true), (CODES[2], 99, false), (0x7f80, 0, true)];
    assert_eq!(walked(&memory, &layout(Flavor::EntryMark)), run);
}

/// Two runs of 3.12: a frame and a generator's, a frame.
fn shimmed() -> Memory {
    let mut memory = with_codes(0x500);
    memory.put(0x500, &[0, 0x600, FS_BASE]);
    memory.put(0x600, &[0x700, CODES[0] | 1, at(CODES[0], 9), 0]);
    memory.put(0x700, &[0x7f00, CODES[1], at(CODES[1], 0), BY_GENERATOR]);
    memory.put(0x7f00, &[0x800, 0, 0, IS_SHIM]);
    memory.put(0x800, &[0x7f80, CODES[2], at(CODES[2], 100), 0]);
    memory.put(0x7f80, &[0, 0, 0, IS_SHIM]);
    memory
}

const SHIMMED: [(u64, u32, bool); 5] = [
    (CODES[0], 9, false),
    (CODES[1], 0, false),
    (0x7f00, 0, true),
    // Behind its last instruction, which cannot be.
    (CODES[2], UNKNOWN_UNIT, false),
    (0x7f80, 0, true),
];

#[test]
fn a_run_of_3_12_ends_at_its_shim() {
    let mut memory = shimmed();
    assert_eq!(walked(&memory, &layout(Flavor::Shim)), SHIMMED);
    // Frames of a higher owner are none, and no end either.
    memory.put(0x700, &[0x7f00, CODES[1], at(CODES[1], 0), 4]);
    assert_eq!(walked(&memory, &layout(Flavor::Shim)), [SHIMMED[0], SHIMMED[2], SHIMMED[3], SHIMMED[4]]);
    // In a copy of the bytecode, of a free-threaded build.
    let mut free = layout(Flavor::Shim);
    free.frame.tlbc_index = 28;
    free.code.tlbc = 56;
    memory.put(CODES[0] + 56, &[0x9000]);
    memory.put(0x9000, &[4, 0, 0, at(0x10_0000, 0)]);
    memory.put(0x600, &[0x700, CODES[0], at(0x10_0000, 0x4803), 2 << 32]);
    free.code.first_traceable = 24;
    assert_eq!(walked(&memory, &free)[0], (CODES[0], UNKNOWN_UNIT, false));
    memory.put(0x600, &[0x700, CODES[0], at(0x10_0000, 42), 2 << 32]);
    assert_eq!(walked(&memory, &free)[0], (CODES[0], 42, false));
}

#[test]
fn the_frame_of_the_thread_state_is_no_run() {
    let mut memory = shimmed();
    let mut layout = layout(Flavor::Shim);
    layout.thread.base_frame = 32;
    memory.put(0x520, &[0x7f80]);
    assert_eq!(walked(&memory, &layout), SHIMMED[..4]);
}

#[test]
fn the_thread_is_found_by_key_or_variable() {
    let sound = shimmed();
    let layout = layout(Flavor::Shim);
    let slot = FS_BASE + u64::from(STORAGE) + 24;
    // Not initialised, or no state for this thread.
    for (addr, word) in [(KEY_ADDR, 0), (KEY_ADDR, 1 << 32), (KEY_ADDR, 1 | 1024 << 32), (slot, 0)] {
        let mut memory = sound.clone();
        memory.put(addr, &[word]);
        assert_eq!(steps(&memory, &layout), []);
    }
    // A key of another block.
    let mut memory = sound.clone();
    memory.put(KEY_ADDR, &[1 | 70 << 32]);
    assert_eq!(steps(&memory, &layout), []);
    memory.put(FS_BASE + u64::from(STORAGE) + 32 * 16 + 2 * 8, &[0xa000]);
    memory.put(0xa000 + 6 * 16 + 8, &[0x500]);
    assert_eq!(walked(&memory, &layout), SHIMMED);
    // musl.
    let mut memory = sound.clone();
    memory.put(FS_BASE + u64::from(STORAGE), &[0xb000]);
    memory.put(0xb008, &[0x500]);
    let musl = PythonLayout { storage: ThreadStorage::Musl as u8, ..layout };
    assert_eq!(walked(&memory, &musl), SHIMMED);
    // The variable comes first, and the stored state while it is null.
    let mut memory = sound.clone();
    memory.put(slot, &[0xbad]);
    memory.put(FS_BASE - 24, &[0x500]);
    let variable = PythonLayout { attached_tls_offset: -24, ..layout };
    assert_eq!(walked(&memory, &variable), SHIMMED);
    let mut memory = sound.clone();
    memory.put(FS_BASE - 24, &[0]);
    assert_eq!(walked(&memory, &variable), SHIMMED);
    memory.put(FS_BASE - 32, &[0x500]);
    let both = PythonLayout { tss_key_addr: 0, stored_tls_offset: -32, ..variable };
    assert_eq!(walked(&memory, &both), SHIMMED);
    assert_eq!(steps(&memory, &PythonLayout { stored_tls_offset: 0, ..both }), []);
}

#[test]
fn states_of_other_interpreters_are_found() {
    let mut memory = shimmed();
    // A newer interpreter, with a thread of its own and a state of this one, which runs one frame.
    memory.put(HEAD_ADDR, &[0x480, 0x400]);
    memory.put(0x480, &[0x400, 0x540]);
    memory.put(0x400, &[0, 0x500]);
    memory.put(0x540, &[0x560, 0xbad, FS_BASE + 8]);
    memory.put(0x560, &[0, 0x900, FS_BASE]);
    memory.put(0x900, &[0x7e00, CODES[1], at(CODES[1], 3), 0]);
    memory.put(0x7e00, &[0, 0, 0, IS_SHIM]);
    let inner = [(CODES[1], 3, false), (0x7e00, 0, true)];
    // The slot has the outer one: what is found comes behind it.
    assert_eq!(walked(&memory, &layout(Flavor::Shim)), [&SHIMMED[..], &inner].concat());
    // Before 3.12 the one in use is known while the thread has the lock, and else the newest comes first.
    let mut older = layout(Flavor::Shim);
    older.current_thread_addr = CURRENT_ADDR;
    assert_eq!(walked(&memory, &older), [&inner[..], &SHIMMED].concat());
    memory.put(CURRENT_ADDR, &[0x560]);
    assert_eq!(walked(&memory, &older), [&inner[..], &SHIMMED].concat());
    memory.put(CURRENT_ADDR, &[0x540]);
    assert_eq!(walked(&memory, &older), [&inner[..], &SHIMMED].concat());
    memory.put(CURRENT_ADDR, &[0x500]);
    assert_eq!(walked(&memory, &older), [&SHIMMED[..], &inner].concat());
    // A list that has no end.
    memory.put(0x540, &[0x540, 0xbad, FS_BASE + 8]);
    assert_eq!(steps(&memory, &older).last(), Some(&PythonStep::Lost));
}

#[test]
fn a_check_changes_with_what_names_a_code_object() {
    let layout = layout(Flavor::Shim);
    let sound = shimmed();
    let check_of = |memory: &Memory| match steps(memory, &layout)[0] {
        PythonStep::Frame { check, .. } => check,
        other => panic!("{other:?}"),
    };
    let mut checks = vec![check_of(&sound)];
    // Line and flags, counts of arguments, name, file, table.
    for word in 2..7 {
        for changed in [1, 1 << 40] {
            let mut memory = sound.clone();
            *memory.words.get_mut(&(CODES[0] + word * 8)).unwrap() ^= changed;
            checks.push(check_of(&memory));
        }
    }
    checks.sort_unstable();
    checks.dedup();
    assert_eq!(checks.len(), 11);
}

#[test]
fn code_that_takes_the_place_of_other_code_is_told_by_its_number_or_texts() {
    let mut numbered = layout(Flavor::Shim);
    numbered.code.version = 60;
    let plain = layout(Flavor::Shim);
    let check_of = |memory: &Memory, layout: &PythonLayout| match steps(memory, layout)[0] {
        PythonStep::Frame { check, .. } => check,
        other => panic!("{other:?}"),
    };
    let mut memory = shimmed();
    // `<module>` of a file "ab0", with a table of 39 bytes.
    memory.put(0x1_1000, &[3, 0, 1 << 2 | 3 << 5, 0x30_6261]);
    memory.put(0x1_2000, &[39, 1, 2, 3, 4, 0x5_0000_0000_0000]);
    memory.put(0x1_0ff8, &[7]);
    memory.put(CODES[0] + 40, &[0x1_1000, 0x1_2000, 2 | 77 << 32]);
    memory.put(CODES[0] + 16, &[7 | 2 << 32]);
    let (by_text, by_number) = (check_of(&memory, &plain), check_of(&memory, &numbered));
    let changed = |addr: u64, word: u64| {
        let mut memory = memory.clone();
        memory.put(addr, &[word]);
        (check_of(&memory, &plain) != by_text, check_of(&memory, &numbered) != by_number)
    };
    // The file's name, another table of the same length, the number.
    assert_eq!(changed(0x1_1018, 0x31_6261), (true, false));
    assert_eq!(changed(0x1_2018, 0x100_0000_0000_0003), (true, false));
    assert_eq!(changed(0x1_2028, 0x4_0000_0000_0000), (true, false));
    assert_eq!(changed(CODES[0] + 56, 2 | 78 << 32), (false, true));
    // The hash of a text comes later, and what lies behind it is another's.
    assert_eq!(changed(0x1_1008, 1), (false, false));
    assert_eq!(changed(0x1_1018, 0xaa00_0000_0030_6261), (false, false));
    // A function's is not looked into: its parts live as long as the module.
    memory.put(CODES[0] + 16, &[7 | 3 << 32]);
    let by_text = check_of(&memory, &plain);
    memory.put(0x1_1018, &[0x31_6261]);
    assert_eq!(check_of(&memory, &plain), by_text);
}

#[test]
fn a_code_object_is_read_for_its_names() {
    let layout = layout(Flavor::Shim);
    let mut memory = shimmed();
    let read = |memory: &Memory| CodeFacts::read(memory, &layout, CODES[0]);
    // Nothing can be read behind the object itself.
    let facts = read(&memory).unwrap();
    assert_eq!((facts.first_line, facts.name, facts.table), (7, Text::default(), Bytes::default()));
    let state = |kind: u64, is_ascii: u64| kind << 2 | 1 << 5 | is_ascii << 6 | 3;
    memory.put(CODES[0] + 0x100, &[11, 0, state(1, 1)]);
    memory.put(0xf110, &[12, 0, state(2, 0)]);
    memory.put(0x7ab10, &[13]);
    let facts = read(&memory).unwrap();
    let text = |addr, chars, kind| Text { addr, chars, kind };
    assert_eq!(facts.name, text(CODES[0] + 0x118, 11, crate::code::TextKind::Latin1));
    assert_eq!(facts.file, text(0xf110 + 40, 12, crate::code::TextKind::Ucs2));
    assert_eq!(facts.table, Bytes { addr: 0x7ab10 + 8, len: 13 });
    // Not compact, of an unknown kind, too long.
    memory.put(CODES[0] + 0x100, &[11, 0, state(1, 1) & !(1 << 5)]);
    memory.put(0xf110, &[12, 0, state(3, 0)]);
    memory.put(0x7ab10, &[u64::MAX]);
    let facts = read(&memory).unwrap();
    assert_eq!((facts.name, facts.table), (Text::default(), Bytes::default()));
    assert_eq!(facts.file.kind, crate::code::TextKind::Unread);
    memory.put(CODES[0], &[CODE_TYPE + 8]);
    assert_eq!(read(&memory), None);
}

#[test]
fn damaged_memory_ends_a_walk_or_leaves_it_to_the_caller() {
    for flavor in [Flavor::Plain, Flavor::CFrame, Flavor::EntryMark, Flavor::Shim] {
        let layout = layout(flavor);
        let mut sound = shimmed();
        sound.put(0x518, &[0x7f00]);
        // A word that is gone, points nowhere, to itself, or to the thread state.
        for addr in sound.words.keys() {
            for damage in [None, Some(u64::MAX), Some(*addr), Some(0x500), Some(0x600), Some(1)] {
                let mut memory = sound.clone();
                match damage {
                    Some(word) => memory.put(*addr, &[word]),
                    None => memory.gone_pages.push(addr / PAGE),
                }
                steps(&memory, &layout);
            }
        }
    }
    // A chain that comes back to itself goes on until the caller stops it.
    let mut memory = shimmed();
    memory.put(0x7f80, &[0x600, 0, 0, IS_SHIM]);
    assert_eq!(steps(&memory, &layout(Flavor::Shim)).len(), 200);
    // A code object that is not in memory now leaves its frame without its line.
    let mut memory = shimmed();
    memory.gone_pages.push(CODES[0] / PAGE);
    let unread = PythonStep::Frame { code_addr: CODES[0], unit: UNKNOWN_UNIT, check: 0 };
    assert_eq!(steps(&memory, &layout(Flavor::Shim))[0], unread);
    assert_eq!(walked(&memory, &layout(Flavor::Shim))[1..], SHIMMED[1..]);
    // What is no code object is not taken for one.
    let mut memory = shimmed();
    memory.put(CODES[2], &[CODE_TYPE + 8]);
    let steps = steps(&memory, &layout(Flavor::Shim));
    assert_eq!((steps.len(), steps[3]), (4, PythonStep::Lost));
}

/// Counts the reads of several words.
struct Counting(Memory, core::cell::Cell<usize>);

impl ReadMemory for Counting {
    fn read_word(&self, addr: u64) -> Option<u64> {
        self.0.read_word(addr)
    }

    fn read_words<const N: usize>(&self, addr: u64, count: u32, to: &mut [u64; N]) -> bool {
        assert!((count as usize) < N && N.is_power_of_two());
        self.1.set(self.1.get() + 1);
        (0..u64::from(count)).zip(to).all(|(index, word)| {
            let value = self.0.read_word(addr.wrapping_add(8 * index));
            *word = value.unwrap_or(0);
            value.is_some()
        })
    }
}

#[test]
fn frames_that_lie_side_by_side_are_read_at_once() {
    // Two runs of twelve frames each, 32 bytes a frame, of three functions; at the begin of a page, so that
    // nothing can be read below.
    let mut memory = with_codes(0x500);
    let frames = 0x9_0000;
    let mut frame = 0;
    for index in 0..24 {
        let addr = frames + index * 32;
        if index % 12 == 0 {
            let shim = 0x7f00_0000 - index * 64;
            memory.put(shim, &[frame, 0, 0, IS_SHIM]);
            frame = shim;
        }
        let code = CODES[index as usize % 3];
        memory.put(addr, &[frame, code, at(code, index + 2), 0]);
        frame = addr;
    }
    memory.put(0x500, &[0, frame, FS_BASE]);
    let memory = Counting(memory, core::cell::Cell::new(0));
    let layout = layout(Flavor::Shim);
    let mut cursor = PythonCursor::default();
    // A walk: 15 frames and 9, two shims; and the code objects, which need not be read until one goes.
    for (deaths, code_reads) in [(None, 3), (None, 3), (Some(5), 3), (Some(5), 0), (Some(6), 3), (None, 3)] {
        memory.1.set(0);
        assert!(cursor.start(&memory, &layout, FS_BASE, deaths));
        let mut units = Vec::new();
        loop {
            match cursor.step(&memory, &layout) {
                PythonStep::Frame { unit, .. } => units.push(unit),
                PythonStep::End => break,
                step => assert!(matches!(step, PythonStep::EndOfRun { .. }), "{step:?}"),
            }
        }
        assert_eq!(units, (2..26).rev().collect::<Vec<_>>());
        assert_eq!(memory.1.get(), 2 + 2 + code_reads, "{deaths:?}");
    }
}

#[test]
fn a_code_object_at_the_place_of_another_is_read_when_one_has_gone() {
    let mut memory = shimmed();
    let layout = layout(Flavor::Shim);
    let mut cursor = PythonCursor::default();
    let mut first_check = |memory: &Memory, deaths| {
        assert!(cursor.start(memory, &layout, FS_BASE, deaths));
        match cursor.step(memory, &layout) {
            PythonStep::Frame { code_addr, check, .. } if code_addr == CODES[0] => check,
            step => panic!("{step:?}"),
        }
    };
    let of_first = first_check(&memory, Some(1));
    memory.put_code(CODES[0], 0xabc);
    assert_eq!(first_check(&memory, Some(1)), of_first, "it did not go, so it was not looked at");
    let of_second = first_check(&memory, Some(2));
    assert_ne!(of_second, of_first);
    memory.put_code(CODES[0], 0xdef);
    assert_ne!(first_check(&memory, None), of_second);
}
