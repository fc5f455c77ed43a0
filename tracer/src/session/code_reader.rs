//! What the kernel side could not send of a Python code object is read here: a line table that is too long for
//! its records, and what lay in a page that was not in memory.

use tracer_common::code::{MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_TABLE_BYTES, TextKind};
use tracer_common::python::{CodeFacts, PythonLayout, Text};

use crate::model::RawCode;
use crate::target::{ProcessMemory, Target};

/// The code objects of a process.
pub trait CodeReader {
    /// What the code object at `addr` says of itself, where there is one.
    fn facts(&self, addr: u64) -> Option<CodeFacts>;

    /// The `count` bytes at `addr`.
    fn bytes(&self, addr: u64, count: usize) -> Option<Box<[u8]>>;
}

/// The code objects of a process that runs.
pub struct RunningCode {
    memory: ProcessMemory,
    layout: PythonLayout,
}

impl RunningCode {
    /// `None` where the process is gone, or its interpreter not known.
    pub fn new(target: &Target) -> Option<Self> {
        let layout = target.python_layout().ok()?;
        let memory = ProcessMemory::open(target.process.tgid).ok()?;
        Some(Self { memory, layout })
    }
}

impl CodeReader for RunningCode {
    fn facts(&self, addr: u64) -> Option<CodeFacts> {
        CodeFacts::read(&self.memory, &self.layout, addr)
    }

    fn bytes(&self, addr: u64, count: usize) -> Option<Box<[u8]>> {
        self.memory.read_bytes(addr, count).ok()
    }
}

/// Whether something is missing that the process may still have.
pub fn is_incomplete(code: &RawCode) -> bool {
    let header = &code.header;
    header.table_field_bytes == 0 || is_unread(header.name_kind) || is_unread(header.file_kind)
}

fn is_unread(kind: u8) -> bool {
    TextKind::from_number(kind) == TextKind::Unread
}

/// Adds to `code` what is missing, if it is still there; tells whether it was.
///
/// The program runs on: what is read counts only where the code object is the same before and after.
pub fn complete(code: &mut RawCode, reader: &impl CodeReader) -> bool {
    let addr = code.header.code_addr;
    let Some(facts) = reader.facts(addr).filter(|facts| facts.check == code.header.check) else {
        return false;
    };
    let text = |text: Text, most_bytes: usize| {
        let bytes = (text.chars as usize).saturating_mul(text.kind as usize).min(most_bytes);
        reader.bytes(text.addr, bytes).filter(|_| text.kind != TextKind::Unread)
    };
    let name = text(facts.name, MAX_NAME_BYTES).filter(|_| is_unread(code.header.name_kind));
    let file = text(facts.file, MAX_FILE_BYTES).filter(|_| is_unread(code.header.file_kind));
    let table = (facts.table.addr != 0 && code.header.table_field_bytes == 0)
        .then(|| reader.bytes(facts.table.addr, (facts.table.len as usize).min(MAX_TABLE_BYTES)))
        .flatten();
    if reader.facts(addr) != Some(facts) {
        return false;
    }
    let header = &mut code.header;
    let is_anything_new = name.is_some() || file.is_some() || table.is_some();
    if let Some(name) = name {
        (header.name_kind, header.name_chars, code.name) = (facts.name.kind as u8, facts.name.chars, name);
    }
    if let Some(file) = file {
        (header.file_kind, header.file_chars, code.file) = (facts.file.kind as u8, facts.file.chars, file);
    }
    if let Some(table) = table {
        header.table_bytes = facts.table.len;
        // A field there is, also where the table is empty.
        header.table_field_bytes = table.len().max(1) as u32;
        code.table = table;
    }
    is_anything_new
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use tracer_common::code::CodeHeader;
    use tracer_common::python::Bytes;

    use super::*;
    use crate::model::{FrameKind, PythonCode};
    use crate::symbolize::python;
    use crate::target::{InlinedPolicy, Process};

    const CHECK: u64 = 99;

    /// A process with one code object, which is replaced after so many looks.
    struct Fake {
        looks_left: Cell<u32>,
        table_bytes: u32,
    }

    impl CodeReader for Fake {
        fn facts(&self, addr: u64) -> Option<CodeFacts> {
            let looks_left = self.looks_left.get();
            self.looks_left.set(looks_left.saturating_sub(1));
            (addr == 0x7000).then_some(CodeFacts {
                first_line: 5,
                name: Text { addr: 0x100, chars: 1300, kind: TextKind::Ucs2 },
                file: Text { addr: 0x200, chars: 4, kind: TextKind::Latin1 },
                table: Bytes { addr: 0x300, len: self.table_bytes },
                check: if looks_left == 0 { CHECK + 1 } else { CHECK },
            })
        }

        fn bytes(&self, addr: u64, count: usize) -> Option<Box<[u8]>> {
            Some(vec![(addr >> 8) as u8; count].into())
        }
    }

    fn raw(code_addr: u64) -> RawCode {
        let header =
            CodeHeader { code_addr, check: CHECK, first_line: 5, minor: 12, ..CodeHeader::default() };
        RawCode { header, name: [].into(), file: [].into(), table: [].into() }
    }

    #[test]
    fn what_is_missing_is_added_and_what_was_sent_stays() {
        let fake = |looks| Fake { looks_left: Cell::new(looks), table_bytes: 70_000 };
        let mut code = raw(0x7000);
        assert!(is_incomplete(&code) && complete(&mut code, &fake(2)) && !is_incomplete(&code));
        assert_eq!((code.name.len(), code.header.name_chars), (MAX_NAME_BYTES, 1300));
        assert_eq!((&*code.file, code.header.file_chars), (&[2; 4][..], 4));
        assert_eq!((code.table.len(), code.header.table_bytes), (MAX_TABLE_BYTES, 70_000));
        assert!(!PythonCode::new(&code).has_whole_table);
        let mut sent = raw(0x7000);
        (sent.header.name_kind, sent.header.name_chars, sent.name) = (1, 1, (*b"f").into());
        assert!(complete(&mut sent, &fake(2)));
        assert_eq!((&*sent.name, &*sent.table), (&b"f"[..], &*code.table));
    }

    #[test]
    fn nothing_is_taken_from_another_code_object() {
        for looks in [0, 1] {
            let mut code = raw(0x7000);
            assert!(!complete(&mut code, &Fake { looks_left: Cell::new(looks), table_bytes: 4 }));
            assert_eq!(code, raw(0x7000));
        }
        assert!(!complete(&mut raw(0x8000), &Fake { looks_left: Cell::new(9), table_bytes: 4 }));
        let mut empty = raw(0x7000);
        assert!(complete(&mut empty, &Fake { looks_left: Cell::new(9), table_bytes: 0 }));
        assert!(PythonCode::new(&empty).has_whole_table);
    }

    /// A function of 20,000 lines, each a call: its table is longer than any that the kernel side sends.
    const PROGRAM: &str = "source = 'def long(f):\\n' + '    f(1)\\n' * 20000\n\
                           names = {}\n\
                           exec(compile(source, '/srv/long\\u017e.py', 'exec'), names)\n\
                           print(id(names['long'].__code__), flush=True)\n\
                           input()\n";

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_long_table_is_read_from_the_process() {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Ended(command.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let code_addr = line.trim().parse().unwrap();
        let target = Target::discover(Process::open(child.0.id()).unwrap(), InlinedPolicy::LeaveOut).unwrap();
        let layout = target.python_layout().unwrap();
        let running = RunningCode::new(&target).unwrap();
        let check = running.facts(code_addr).unwrap().check;
        let header =
            CodeHeader { code_addr, check, first_line: 1, minor: layout.minor, ..CodeHeader::default() };
        let mut code = RawCode { header, name: [].into(), file: [].into(), table: [].into() };
        assert!(complete(&mut code, &running));
        assert!(code.table.len() > tracer_common::code::LARGE_TABLE_BYTES, "{}", code.table.len());
        let code = PythonCode::new(&code);
        let line = |unit| python::frame(Some(&code), unit).line;
        // A line takes 4 (3.8) to 10 (3.11) units.
        let lines: Vec<u32> = (100..50_000).step_by(499).filter_map(line).collect();
        assert!(lines.is_sorted() && lines[0] < 50 && *lines.last().unwrap() > 4000, "{lines:?}");
        let frame = python::frame(Some(&code), 100);
        assert_eq!((frame.kind, frame.function.as_deref()), (FrameKind::Python, Some("long")));
        assert_eq!(frame.file.as_deref(), Some("/srv/longž.py"));
        let mut other = raw(code_addr);
        other.header.check = check ^ 1;
        assert!(!complete(&mut other, &running));
    }
}
