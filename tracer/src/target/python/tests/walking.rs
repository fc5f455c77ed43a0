//! Walking a thread's Python frames to the end, and naming them.

use tracer_common::memory::ReadMemory;
use tracer_common::python::{Bytes, CodeFacts, PythonCursor, PythonLayout, PythonStep, Text};

use crate::model::{PythonCode, PythonText};
use crate::symbolize::python;

/// A frame, as the program tells it and as the walk finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub unit: u32,
    pub line: u32,
    pub name: String,
    pub file: String,
}

impl Seen {
    /// `UNIT LINE NAME<tab>FILE`, as the program tells it.
    pub fn decode(frame: &str) -> Self {
        let mut words = frame.splitn(3, ' ');
        let mut number = || words.next().unwrap().parse::<i32>().unwrap() as u32;
        let (unit, line) = (number(), number());
        let (name, file) = words.next().unwrap().split_once('\t').unwrap();
        Self { unit, line, name: name.into(), file: file.into() }
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Walked {
    pub frames: Vec<Seen>,
    /// The mark of each run, and how many frames it has.
    pub runs: Vec<(u64, usize)>,
    pub is_complete: bool,
    /// The first code object of which a step and a reading do not say the same.
    pub differs: Option<u64>,
}

/// Most steps of a walk.
const MAX_STEPS: usize = 1000;

/// Most bytes that are read of a text or a table.
const MAX_BYTES: u64 = 1 << 16;

fn bytes(memory: &impl ReadMemory, bytes: Bytes) -> Box<[u8]> {
    let byte = |addr: u64| Some((memory.read_word(addr & !7)? >> (addr % 8 * 8)) as u8);
    (0..u64::from(bytes.len).min(MAX_BYTES)).map_while(|index| byte(bytes.addr.wrapping_add(index))).collect()
}

fn text(memory: &impl ReadMemory, text: Text) -> PythonText {
    let len = text.chars.saturating_mul(text.kind as u32);
    PythonText { kind: text.kind, chars: text.chars, bytes: bytes(memory, Bytes { addr: text.addr, len }) }
}

/// A frame as a report has it.
fn seen(memory: &impl ReadMemory, layout: &PythonLayout, facts: &CodeFacts, unit: u32) -> Seen {
    let code = PythonCode {
        name: text(memory, facts.name),
        file: text(memory, facts.file),
        first_line: facts.first_line,
        minor: layout.minor,
        table: bytes(memory, facts.table),
        has_whole_table: true,
    };
    let frame = python::frame(Some(&code), unit);
    Seen {
        unit,
        line: frame.line.unwrap_or(0),
        name: frame.function.unwrap_or_default(),
        file: frame.file.unwrap_or_default(),
    }
}

/// Walks the frames of the thread whose pointer to itself is `fs_base`.
pub fn walk(memory: &impl ReadMemory, layout: &PythonLayout, fs_base: u64) -> Walked {
    let mut walked = Walked::default();
    let mut cursor = PythonCursor::default();
    if !cursor.start(memory, layout, fs_base, None) {
        return walked;
    }
    let mut in_run = 0;
    for _ in 0..MAX_STEPS {
        match cursor.step(memory, layout) {
            PythonStep::Frame { code_addr, unit, check } => {
                let facts = CodeFacts::read(memory, layout, code_addr);
                match facts.filter(|facts| facts.check == check) {
                    Some(facts) => walked.frames.push(seen(memory, layout, &facts, unit)),
                    None => walked.differs = walked.differs.or(Some(code_addr)),
                }
                in_run += 1;
            }
            PythonStep::EndOfRun { mark_addr } => {
                walked.runs.push((mark_addr, in_run));
                in_run = 0;
            }
            PythonStep::Skip => {}
            PythonStep::End => {
                walked.is_complete = in_run == 0;
                break;
            }
            PythonStep::Lost => break,
        }
    }
    walked
}
