//! Walks over stacks of a real process, each kept as what the walk reads of it, against gdb's of the same moment.
//!
//! The file is text: the executable mappings, the rules of the addresses that are on the stacks, and for each
//! stack the registers, gdb's frames (innermost first, `i` where the code was interrupted), how the walk ends and
//! words by address. `cargo xtask images` makes it anew; the program is `tests/targets/shapes`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tracer_common::event::{MAX_FRAMES, Stack, WalkEnd};
use tracer_common::frame::Frame;
use tracer_common::memory::ReadMemory;
use tracer_common::native::{Mappings as _, Process, PythonFrames, Registers, walk};
use tracer_common::unwind_table::{Base, CodeMapping, Rule, Special, Words, rule_at};

use super::super::rows::{Rows, WideRules};
use super::super::{Table, compile};

const IMAGE: &str = include_str!("images/shapes.txt");

/// The variable that names the directory with what gdb recorded.
const RECORDED: &str = "MEMTRACE_RECORDED_STACKS";

/// Addresses of a rule: the file, by its number, and the offset in it.
type RulePlace = (u32, u64);

/// A rule and, of a wide one, the distances to the CFA and to the saved `rbp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeptRule {
    rule: Rule,
    wide: Option<(i64, i64)>,
}

/// An executable mapping, with the number of its file's table and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptMapping {
    range: (u64, u64),
    file_offset: u64,
    table: Option<u32>,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptStack {
    name: String,
    registers: (u64, u64),
    /// gdb's.
    frames: Vec<Frame>,
    /// Of these, so many the walk has.
    walked: usize,
    end: WalkEnd,
    words: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Image {
    mappings: Vec<KeptMapping>,
    rules: BTreeMap<RulePlace, KeptRule>,
    stacks: Vec<KeptStack>,
}

/// A process as a walk sees it.
struct Kept<'a, M> {
    memory: M,
    tables: &'a [Table],
    mappings: &'a [CodeMapping],
}

impl<M: Fn(u64) -> Option<u64>> ReadMemory for Kept<'_, M> {
    fn read_word(&self, addr: u64) -> Option<u64> {
        (self.memory)(addr)
    }
}

impl<M: Fn(u64) -> Option<u64>> Words for Kept<'_, M> {
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        self.tables.get(table as usize)?.words.get(index as usize).copied()
    }
}

impl<M: Fn(u64) -> Option<u64>> Process for Kept<'_, M> {
    fn generation(&self) -> u64 {
        1
    }

    fn mapping_of(&self, addr: u64) -> Option<&CodeMapping> {
        self.mappings.find(addr)
    }

    fn probed_return_addr(&self, _slot_addr: u64, _trampoline: u64) -> Option<u64> {
        None
    }

    fn is_evaluator(&self, _addr: u64) -> bool {
        false
    }
}

impl<M: Fn(u64) -> Option<u64>> Kept<'_, M> {
    fn walked(&self, (sp, bp): (u64, u64)) -> (Vec<Frame>, WalkEnd) {
        let no_python = PythonFrames { count: 0, is_cut: 0, words: [0; MAX_FRAMES] };
        let mut stack =
            Stack { count: 0, is_sent: 0, image: 0, end: 0, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
        let end = walk(self, Registers { sp, bp }, &no_python, &mut stack);
        let frames = &stack.frames[..stack.count as usize];
        (frames.iter().map(|word| Frame::from_word(*word)).collect(), end)
    }
}

fn code_mappings(mappings: &[KeptMapping], tables: &[Table]) -> Vec<CodeMapping> {
    let placed = mappings.iter().map(|mapping| CodeMapping {
        start_addr: mapping.range.0,
        end_addr: mapping.range.1,
        file_offset: mapping.file_offset,
        table: mapping.table.unwrap_or(CodeMapping::NO_TABLE),
        mark: 0,
        geometry: mapping.table.map(|table| tables[table as usize].geometry).unwrap_or_default(),
    });
    placed.collect()
}

const ENDS: [(&str, WalkEnd); 6] = [
    ("complete", WalkEnd::Complete),
    ("too-deep", WalkEnd::TooDeep),
    ("no-unwind-info", WalkEnd::NoUnwindInfo),
    ("unsupported", WalkEnd::Unsupported),
    ("unreadable", WalkEnd::Unreadable),
    ("astray", WalkEnd::Astray),
];

impl Image {
    /// Tables that have a rule for the addresses on the stacks, and none for others.
    fn tables(&self) -> Vec<Table> {
        let count = self.mappings.iter().filter_map(|mapping| mapping.table).max().map_or(0, |last| last + 1);
        let table = |number| {
            let (mut rows, mut wide) = (Rows::new(), WideRules::default());
            for ((_, offset), kept) in self.rules.range((number, 0)..(number + 1, 0)) {
                let rule = match kept.wide {
                    Some((cfa, rbp)) if kept.rule.base() == Base::WideRsp => wide.rule(Base::Rsp, cfa, rbp),
                    Some((cfa, rbp)) => wide.rule(Base::Rbp, cfa, rbp),
                    None => kept.rule,
                };
                rows.set(*offset, rule);
                rows.set(offset + 1, Rule::NONE);
            }
            rows.into_table(wide).unwrap()
        };
        (0..count).map(table).collect()
    }

    fn encode(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").unwrap();
        for KeptMapping { range: (start, end), file_offset, table, name } in &self.mappings {
            let table = table.map_or_else(|| "-".to_owned(), |table| table.to_string());
            line(format!("code {start:x} {end:x} {file_offset:x} {table} {name}"));
        }
        for ((table, offset), KeptRule { rule, wide }) in &self.rules {
            let wide = wide.map_or_else(String::new, |(cfa, rbp)| format!(" {cfa} {rbp}"));
            line(format!("rule {table} {offset:x} {:x}{wide}", rule.0));
        }
        for stack in &self.stacks {
            let end = ENDS.iter().find(|(_, end)| *end == stack.end).unwrap().0;
            line(format!("stack {}", stack.name));
            line(format!("at {:x} {:x} {} {end}", stack.registers.0, stack.registers.1, stack.walked));
            for frame in &stack.frames {
                line(match frame {
                    Frame::Return(addr) => format!("r {addr:x}"),
                    Frame::Interrupted(addr) => format!("i {addr:x}"),
                    Frame::Python { .. } => unreachable!("gdb has no such frames"),
                });
            }
            let mut words = stack.words.iter().peekable();
            while let Some((addr, word)) = words.next() {
                let mut run = format!("{addr:x}: {word:x}");
                let mut next = addr + 8;
                while let Some((_, word)) = words.next_if(|(addr, _)| **addr == next) {
                    write!(run, " {word:x}").unwrap();
                    next += 8;
                }
                line(run);
            }
        }
        text
    }

    fn decode(text: &str) -> Self {
        let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
        let mut image = Self::default();
        for line in text.lines() {
            if let Some((start, words)) = line.split_once(": ") {
                let stack = image.stacks.last_mut().unwrap();
                stack.words.extend((hex(start)..).step_by(8).zip(words.split(' ').map(hex)));
                continue;
            }
            let (kind, rest) = line.split_once(' ').unwrap();
            let fields: Vec<&str> = rest.split(' ').collect();
            match kind {
                "code" => image.mappings.push(KeptMapping {
                    range: (hex(fields[0]), hex(fields[1])),
                    file_offset: hex(fields[2]),
                    table: fields[3].parse().ok(),
                    name: fields[4].to_owned(),
                }),
                "rule" => {
                    let rule = Rule(u32::from_str_radix(fields[2], 16).unwrap());
                    let distance = |at: usize| fields.get(at).map(|field| field.parse::<i64>().unwrap());
                    let kept = KeptRule { rule, wide: distance(3).zip(distance(4)) };
                    image.rules.insert((fields[0].parse().unwrap(), hex(fields[1])), kept);
                }
                "stack" => image.stacks.push(KeptStack {
                    name: rest.to_owned(),
                    registers: (0, 0),
                    frames: Vec::new(),
                    walked: 0,
                    end: WalkEnd::default(),
                    words: BTreeMap::new(),
                }),
                "at" => {
                    let stack = image.stacks.last_mut().unwrap();
                    stack.registers = (hex(fields[0]), hex(fields[1]));
                    stack.walked = fields[2].parse().unwrap();
                    stack.end = ENDS.iter().find(|(name, _)| *name == fields[3]).unwrap().1;
                }
                "r" => image.stacks.last_mut().unwrap().frames.push(Frame::Return(hex(fields[0]))),
                "i" => image.stacks.last_mut().unwrap().frames.push(Frame::Interrupted(hex(fields[0]))),
                _ => panic!("{line}"),
            }
        }
        image
    }
}

#[test]
fn stacks_of_real_processes_are_walked_as_gdb_has_them() {
    let image = Image::decode(IMAGE);
    assert!(image.stacks.len() >= 40, "{}", image.stacks.len());
    let tables = image.tables();
    let mappings = code_mappings(&image.mappings, &tables);
    for stack in &image.stacks {
        let memory = |addr| stack.words.get(&addr).copied();
        let (frames, end) = Kept { memory, tables: &tables, mappings: &mappings }.walked(stack.registers);
        assert_eq!(frames, stack.frames[..stack.walked], "{}", stack.name);
        assert_eq!(end, stack.end, "{}", stack.name);
        assert!(stack.walked == stack.frames.len() || end != WalkEnd::Complete, "{}", stack.name);
    }
}

/// Frames of whole stacks are many, those that are cut few, and each kind of rule is among them.
#[test]
fn the_kept_stacks_are_hard_ones() {
    let image = Image::decode(IMAGE);
    let whole = image.stacks.iter().filter(|stack| stack.end == WalkEnd::Complete).count();
    assert!(whole * 10 >= image.stacks.len() * 8, "{whole} of {}", image.stacks.len());
    let bases: BTreeSet<u8> = image.rules.values().map(|kept| kept.rule.base() as u8).collect();
    for base in [Base::Rsp, Base::Rbp, Base::RbpIndirect, Base::RspIndirect, Base::Plt, Base::WideRsp] {
        assert!(bases.contains(&(base as u8)), "{base:?}");
    }
    let signals = image
        .rules
        .values()
        .any(|kept| kept.rule.base() == Base::Special && kept.rule.special_kind() == Special::SignalFrame);
    assert!(signals);
}

#[test]
fn an_image_is_what_was_written() {
    assert_eq!(Image::decode(IMAGE).encode(), IMAGE);
}

/// A line of what gdb recorded, by `tests/harness/gdb_stacks.py`.
#[derive(Deserialize)]
struct Recorded {
    name: String,
    frames: Vec<(Option<String>, u64, Option<String>)>,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    registers: (u64, u64),
    /// Pieces of memory: address, and bytes as hexadecimal digits.
    memory: Vec<(u64, String)>,
    /// Executable mappings: start, end, offset, path.
    code: Vec<(u64, u64, u64, Option<String>)>,
}

/// Words as they lie in pieces of memory.
fn words_of(pieces: &[(u64, String)]) -> BTreeMap<u64, u64> {
    let mut words = BTreeMap::new();
    for (start, digits) in pieces {
        for (index, word) in digits.as_bytes().chunks_exact(16).enumerate() {
            let word = u64::from_str_radix(std::str::from_utf8(word).unwrap(), 16).unwrap();
            words.insert(start + index as u64 * 8, word.swap_bytes());
        }
    }
    words
}

/// What a process has mapped, and the tables of it.
#[derive(Default)]
struct Files {
    names: Vec<String>,
    tables: Vec<Table>,
}

impl Files {
    fn number(&mut self, path: &str, directory: &Path) -> Option<u32> {
        if let Some(known) = self.names.iter().position(|name| name == path) {
            return u32::try_from(known).ok();
        }
        let file = if path == "[vdso]" { directory.join("vdso") } else { PathBuf::from(path) };
        let table = compile(&fs::read(file).ok()?, None).ok()?;
        self.names.push(path.to_owned());
        self.tables.push(table);
        u32::try_from(self.names.len() - 1).ok()
    }
}

/// The rule at an address, with the distances of a wide one.
fn kept_rule(process: &impl Words, mapping: &CodeMapping, addr: u64) -> KeptRule {
    let rule = rule_at(process, mapping, addr);
    let wide = matches!(rule.base(), Base::WideRsp | Base::WideRbp).then(|| {
        let index = mapping.geometry.wide_at + rule.wide_index();
        let word = process.word(mapping.table, index).unwrap();
        (i64::from(word as u32 as i32), i64::from((word >> 32) as u32 as i32))
    });
    // The index of a wide word is that of the table it is in.
    let rule = if wide.is_some() { Rule(rule.0 & 7) } else { rule };
    KeptRule { rule, wide }
}

/// Run by `cargo xtask images`.
#[test]
#[ignore = "makes the image from what gdb recorded"]
fn make_native_images() {
    let directory = PathBuf::from(std::env::var_os(RECORDED).expect("cargo xtask images sets it"));
    let text = fs::read_to_string(directory.join("stacks.json")).unwrap();
    let mut files = Files::default();
    let mut image = Image::default();
    let mut kinds = BTreeSet::new();
    for line in text.lines() {
        let recorded: Recorded = serde_json::from_str(line).unwrap();
        let name_of = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let mappings: Vec<KeptMapping> = recorded
            .context
            .code
            .iter()
            .map(|(start, end, file_offset, path)| KeptMapping {
                range: (*start, *end),
                file_offset: *file_offset,
                table: path.as_deref().and_then(|path| files.number(path, &directory)),
                name: path.as_deref().map_or_else(|| "-".to_owned(), name_of),
            })
            .collect();
        let placed = code_mappings(&mappings, &files.tables);
        let words = words_of(&recorded.context.memory);
        let read = RefCell::new(BTreeMap::new());
        let memory = |addr| {
            let word = words.get(&addr).copied()?;
            read.borrow_mut().insert(addr, word);
            Some(word)
        };
        let process = Kept { memory, tables: &files.tables, mappings: &placed };
        let addr_of = |(path, at, _): &(Option<String>, u64, Option<String>)| match path {
            Some(path) => {
                let is_there = |(start, end, offset, mapped): &&(u64, u64, u64, Option<String>)| {
                    mapped.as_ref() == Some(path) && (*offset..=offset + (end - start)).contains(at)
                };
                recorded.context.code.iter().find(is_there).map(|(start, _, offset, _)| start + at - offset)
            }
            None => Some(*at),
        };
        let mapping_of =
            |addr: u64| placed.iter().find(|mapping| (mapping.start_addr..mapping.end_addr).contains(&addr));
        let (mut frames, mut rules) = (Vec::new(), BTreeMap::new());
        let mut is_interrupted = false;
        for frame in &recorded.frames {
            let addr = addr_of(frame).unwrap_or_else(|| panic!("{frame:?} of {}", recorded.name));
            let looked_up = addr - u64::from(!is_interrupted);
            frames.push(if is_interrupted { Frame::Interrupted(addr) } else { Frame::Return(addr) });
            is_interrupted = false;
            if let Some(mapping) = mapping_of(looked_up).filter(|m| m.table != CodeMapping::NO_TABLE) {
                let rule = kept_rule(&process, mapping, looked_up);
                is_interrupted = rule.rule == Rule::SIGNAL_FRAME;
                rules.insert((mapping.table, looked_up - mapping.start_addr + mapping.file_offset), rule);
            }
        }
        // Of the many that are interrupted at any instruction one of each kind of rule is enough.
        let interrupted = frames.iter().position(|frame| matches!(frame, Frame::Interrupted(_)));
        if recorded.name == "step" {
            let Some(at) = interrupted else { continue };
            let Frame::Interrupted(addr) = frames[at] else { continue };
            let rule = mapping_of(addr).map_or(Rule::NONE, |mapping| rule_at(&process, mapping, addr));
            if !kinds.insert(rule.base() as u8) {
                continue;
            }
        }
        let (walked, end) = process.walked(recorded.context.registers);
        assert!(frames.starts_with(&walked), "{}: {walked:x?} is not {frames:x?}", recorded.name);
        image.rules.extend(rules);
        // Mappings that came later do no harm to the stacks before.
        if mappings.len() > image.mappings.len() {
            image.mappings = mappings;
        }
        image.stacks.push(KeptStack {
            name: recorded.name,
            registers: recorded.context.registers,
            frames,
            walked: walked.len(),
            end,
            words: read.into_inner(),
        });
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/unwind/tests/images/shapes.txt");
    fs::write(file, image.encode()).unwrap();
}
