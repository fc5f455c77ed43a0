//! Where each version of CPython keeps what the walk needs.
//!
//! The numbers were read from the debug information of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0 and
//! from the headers of Debian's 3.13.18, 3.14.10 and 3.15.2, compiled with and without `Py_GIL_DISABLED`, and
//! compared with live processes. What is listed does not change within a minor version. From 3.13 on the interpreter tells
//! most of it itself: see [`super::debug_offsets`].

use tracer_common::python::{CodeLayout, Flavor, FrameLayout, PythonLayout, TextLayout, ThreadLayout};

/// Offsets in `_PyRuntime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuntimeOffsets {
    /// `interpreters.head`, behind which `interpreters.main` lies.
    pub interpreters: u64,
    /// `gilstate.tstate_current`, before 3.12.
    pub current_thread: Option<u64>,
    /// `autoTSSkey`, before 3.15, which has a variable of the thread in its stead.
    pub tss_key: Option<u64>,
}

/// Offsets in a frame: from the start of the struct, as all here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameOffsets {
    pub previous: u16,
    pub code: u16,
    pub instruction: u16,
    /// With `owner` and `tlbc_index` the fields that some versions lack.
    pub is_entry: Option<u16>,
    pub owner: Option<u16>,
    pub tlbc_index: Option<u16>,
}

/// Offsets in a code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeOffsets {
    pub argcount: u16,
    pub kwonlyargcount: u16,
    pub flags: u16,
    pub first_line: u16,
    pub file: u16,
    pub name: u16,
    pub table: u16,
    /// `co_version`, since 3.12.
    pub version: Option<u16>,
    /// Of the versions whose bytecode lies in the code object.
    pub bytecode: Option<BytecodeOffsets>,
}

/// Offsets in a code object, 3.11 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BytecodeOffsets {
    pub first_traceable: u16,
    pub tlbc: Option<u16>,
    pub start: u16,
}

/// All of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub flavor: Flavor,
    pub runtime: RuntimeOffsets,
    pub thread: ThreadLayout,
    pub frame: FrameOffsets,
    /// `CFrame.previous`
    pub c_frame_previous: u16,
    /// `PyObject.ob_type`
    pub ob_type: u16,
    /// `PyVarObject.ob_size`
    pub ob_size: u16,
    pub code: CodeOffsets,
    pub text: TextLayout,
}

/// Owner of the frame that stands for an invocation of the evaluation loop: `FRAME_OWNED_BY_CSTACK` of 3.12
/// and 3.13, `FRAME_OWNED_BY_INTERPRETER` since. Its successors are no Python frames either.
const SHIM_OWNER: u8 = 3;

/// Words that a walk can read of a frame, and of a code object.
const MAX_FRAME_WORDS: u16 = 15;
const MAX_CODE_WORDS: u16 = 31;

/// Texts up to 3.11, whose `PyASCIIObject` ends with a pointer that later versions lack.
const OLD_TEXT: TextLayout = TextLayout {
    length: 16,
    state: 32,
    ascii_data: 48,
    compact_data: 72,
    bytes_size: 16,
    bytes_data: 32,
    kind_shift: 2,
    compact_bit: 5,
    reserved: [0; 2],
};

/// Texts since 3.12.
const TEXT: TextLayout = TextLayout { ascii_data: 40, compact_data: 56, ..OLD_TEXT };

/// Texts of the free-threaded 3.13: the head of an object has 16 bytes more.
const FREE_TEXT_313: TextLayout = TextLayout {
    length: 32,
    state: 48,
    ascii_data: 56,
    compact_data: 72,
    bytes_size: 32,
    bytes_data: 48,
    ..TEXT
};

/// Texts of free-threaded builds since 3.14: `interned` is a byte of its own.
const FREE_TEXT: TextLayout = TextLayout { kind_shift: 8, compact_bit: 11, ..FREE_TEXT_313 };

const fn thread(next: u16, frame: u16, thread_id: u16, interpreter_next: u16, threads: u16) -> ThreadLayout {
    ThreadLayout {
        next,
        frame,
        c_frame: 0,
        c_frame_current: ThreadLayout::NO_C_FRAME,
        thread_id,
        interpreter_next,
        interpreter_threads: threads,
        base_frame: 0,
    }
}

const PY38: Offsets = Offsets {
    flavor: Flavor::Plain,
    runtime: RuntimeOffsets { interpreters: 32, current_thread: Some(1368), tss_key: Some(1392) },
    thread: thread(8, 24, 176, 0, 8),
    frame: FrameOffsets {
        previous: 24,
        code: 32,
        instruction: 104,
        is_entry: None,
        owner: None,
        tlbc_index: None,
    },
    c_frame_previous: 0,
    ob_type: 8,
    ob_size: 16,
    code: CodeOffsets {
        argcount: 16,
        kwonlyargcount: 24,
        flags: 36,
        first_line: 40,
        file: 104,
        name: 112,
        table: 120,
        version: None,
        bytecode: None,
    },
    text: OLD_TEXT,
};

const PY39: Offsets = Offsets {
    runtime: RuntimeOffsets { interpreters: 32, current_thread: Some(568), tss_key: Some(584) },
    ..PY38
};

const PY310: Offsets = Offsets {
    flavor: Flavor::CFrame,
    thread: ThreadLayout { c_frame: 48, ..PY39.thread },
    frame: FrameOffsets { instruction: 96, ..PY39.frame },
    c_frame_previous: 8,
    ..PY39
};

const PY311: Offsets = Offsets {
    flavor: Flavor::EntryMark,
    runtime: RuntimeOffsets { interpreters: 40, current_thread: Some(576), tss_key: Some(592) },
    thread: ThreadLayout { c_frame_current: 8, ..thread(8, 56, 152, 0, 16) },
    frame: FrameOffsets {
        previous: 48,
        code: 32,
        instruction: 56,
        is_entry: Some(68),
        owner: Some(69),
        tlbc_index: None,
    },
    c_frame_previous: 16,
    ob_type: 8,
    ob_size: 16,
    code: CodeOffsets {
        argcount: 56,
        kwonlyargcount: 64,
        flags: 48,
        first_line: 72,
        file: 112,
        name: 128,
        table: 136,
        version: None,
        bytecode: Some(BytecodeOffsets { first_traceable: 168, tlbc: None, start: 184 }),
    },
    text: OLD_TEXT,
};

const PY312: Offsets = Offsets {
    flavor: Flavor::Shim,
    runtime: RuntimeOffsets { interpreters: 40, current_thread: None, tss_key: Some(1544) },
    thread: ThreadLayout { c_frame_current: 0, ..thread(8, 56, 136, 0, 72) },
    frame: FrameOffsets {
        previous: 8,
        code: 0,
        instruction: 56,
        is_entry: None,
        owner: Some(70),
        tlbc_index: None,
    },
    c_frame_previous: 0,
    code: CodeOffsets {
        argcount: 52,
        kwonlyargcount: 60,
        first_line: 68,
        version: Some(92),
        bytecode: Some(BytecodeOffsets { first_traceable: 176, tlbc: None, start: 192 }),
        ..PY311.code
    },
    text: TEXT,
    ..PY311
};

const PY313: Offsets = Offsets {
    runtime: RuntimeOffsets { interpreters: 632, current_thread: None, tss_key: Some(2160) },
    thread: thread(8, 72, 152, 7264, 7344),
    code: CodeOffsets {
        bytecode: Some(BytecodeOffsets { first_traceable: 184, tlbc: None, start: 200 }),
        ..PY312.code
    },
    ..PY312
};

const PY314: Offsets = Offsets {
    runtime: RuntimeOffsets { interpreters: 808, current_thread: None, tss_key: Some(2336) },
    thread: thread(8, 72, 152, 7272, 7344),
    frame: FrameOffsets { owner: Some(74), ..PY313.frame },
    code: CodeOffsets {
        bytecode: Some(BytecodeOffsets { first_traceable: 192, tlbc: None, start: 208 }),
        ..PY313.code
    },
    ..PY313
};

/// Frames and code objects are those of 3.14.
const PY315: Offsets = Offsets {
    runtime: RuntimeOffsets { interpreters: 936, current_thread: None, tss_key: None },
    thread: ThreadLayout { base_frame: 80, ..thread(8, 72, 176, 7264, 7336) },
    ..PY314
};

/// The code object of a free-threaded build: its head is larger.
const fn free_code(code: CodeOffsets, bytecode: BytecodeOffsets) -> CodeOffsets {
    CodeOffsets {
        argcount: code.argcount + 16,
        kwonlyargcount: code.kwonlyargcount + 16,
        flags: code.flags + 16,
        first_line: code.first_line + 16,
        file: code.file + 16,
        name: code.name + 16,
        table: code.table + 16,
        version: match code.version {
            Some(version) => Some(version + 16),
            None => None,
        },
        bytecode: Some(bytecode),
    }
}

const PY313T: Offsets = Offsets {
    ob_type: 24,
    ob_size: 32,
    code: free_code(PY313.code, BytecodeOffsets { first_traceable: 200, tlbc: None, start: 216 }),
    text: FREE_TEXT_313,
    ..PY313
};

const PY314T: Offsets = Offsets {
    frame: FrameOffsets { owner: Some(78), tlbc_index: Some(72), ..PY314.frame },
    ob_type: 24,
    ob_size: 32,
    code: free_code(PY314.code, BytecodeOffsets { first_traceable: 208, tlbc: Some(224), start: 232 }),
    text: FREE_TEXT,
    ..PY314
};

const PY315T: Offsets = Offsets { runtime: PY315.runtime, thread: PY315.thread, ..PY314T };

impl Offsets {
    /// Those of Python 3.`minor`; `None` where they are not known.
    pub(super) const fn of(minor: u8, is_free_threaded: bool) -> Option<Self> {
        Some(match (minor, is_free_threaded) {
            (8, false) => PY38,
            (9, false) => PY39,
            (10, false) => PY310,
            (11, false) => PY311,
            (12, false) => PY312,
            (13, false) => PY313,
            (13, true) => PY313T,
            (14, false) => PY314,
            (14, true) => PY314T,
            (15, false) => PY315,
            (15, true) => PY315T,
            _ => return None,
        })
    }

    /// The layout as the walk takes it, without the addresses. `None` where a part is larger than what can be
    /// read of it.
    pub(super) fn layout(&self) -> Option<PythonLayout> {
        Some(PythonLayout {
            thread: self.thread,
            frame: self.frame_layout()?,
            code: self.code_layout()?,
            text: self.text,
            flavor: self.flavor as u8,
            ..PythonLayout::default()
        })
    }

    fn frame_layout(&self) -> Option<FrameLayout> {
        let fields = &self.frame;
        let mut span = Span::default();
        span.add(fields.previous, 8);
        span.add(fields.code, 8);
        let instruction_bytes = match self.flavor {
            Flavor::Plain | Flavor::CFrame => 4,
            Flavor::EntryMark | Flavor::Shim => 8,
        };
        span.add(fields.instruction, instruction_bytes);
        for byte in [fields.is_entry, fields.owner].into_iter().flatten() {
            span.add(byte, 1);
        }
        if let Some(index) = fields.tlbc_index {
            span.add(index, 4);
        }
        let (read_from, read_words) = span.words(MAX_FRAME_WORDS)?;
        let inside = |field: u16| field - read_from;
        Some(FrameLayout {
            read_from,
            read_words,
            previous: inside(fields.previous),
            code: inside(fields.code),
            instruction: inside(fields.instruction),
            owner: fields.owner.map_or(0, inside),
            is_entry: fields.is_entry.map_or(0, inside),
            tlbc_index: fields.tlbc_index.map_or(0, inside),
            c_frame_previous: self.c_frame_previous,
            shim_owner: SHIM_OWNER,
            reserved: 0,
        })
    }

    fn code_layout(&self) -> Option<CodeLayout> {
        let fields = &self.code;
        let mut span = Span::default();
        for pointer in [self.ob_type, fields.file, fields.name, fields.table] {
            span.add(pointer, 8);
        }
        for int in [fields.argcount, fields.kwonlyargcount, fields.flags, fields.first_line] {
            span.add(int, 4);
        }
        if let Some(version) = fields.version {
            span.add(version, 4);
        }
        if let Some(bytecode) = &fields.bytecode {
            span.add(self.ob_size, 8);
            span.add(bytecode.first_traceable, 4);
            if let Some(tlbc) = bytecode.tlbc {
                span.add(tlbc, 8);
            }
        }
        let (read_from, read_words) = span.words(MAX_CODE_WORDS)?;
        let inside = |field: u16| field - read_from;
        let bytecode = fields.bytecode.as_ref();
        Some(CodeLayout {
            read_from,
            read_words,
            ob_type: inside(self.ob_type),
            units: bytecode.map_or(0, |_| inside(self.ob_size)),
            argcount: inside(fields.argcount),
            kwonlyargcount: inside(fields.kwonlyargcount),
            flags: inside(fields.flags),
            first_line: inside(fields.first_line),
            file: inside(fields.file),
            name: inside(fields.name),
            table: inside(fields.table),
            first_traceable: bytecode.map_or(0, |bytecode| inside(bytecode.first_traceable)),
            version: fields.version.map_or(0, inside),
            tlbc: bytecode.and_then(|bytecode| bytecode.tlbc).map_or(0, inside),
            bytecode: bytecode.map_or(0, |bytecode| bytecode.start),
        })
    }
}

/// The part of a struct that some fields lie in.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    bounds: Option<(u16, u16)>,
    is_split: bool,
}

impl Span {
    fn add(&mut self, offset: u16, bytes: u16) {
        let Some(end) = offset.checked_add(bytes) else {
            self.is_split = true;
            return;
        };
        self.is_split |= offset % 8 + bytes > 8;
        let (from, to) = self.bounds.unwrap_or((offset, end));
        self.bounds = Some((from.min(offset), to.max(end)));
    }

    /// Its first byte and its length in words; `None` where it is too long, or a field lies in two words.
    fn words(self, most: u16) -> Option<(u16, u16)> {
        let (from, to) = self.bounds?;
        let from = from & !7;
        let words = (to - from).div_ceil(8);
        (!self.is_split && words <= most).then_some((from, words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_fits_what_is_read_at_once() {
        let known = (0..=20).flat_map(|minor| [(minor, false), (minor, true)]);
        let layouts: Vec<PythonLayout> =
            known.filter_map(|(minor, free)| Some(Offsets::of(minor, free)?.layout().unwrap())).collect();
        assert_eq!(layouts.len(), 11);
        // 3.8: f_back to f_lasti. 3.11: f_code to owner. 3.14t: all before the locals.
        let read = |index: usize| (layouts[index].frame.read_from, layouts[index].frame.read_words);
        assert_eq!((read(0), read(3), read(8)), ((24, 11), (32, 5), (0, 10)));
        let read = |index: usize| (layouts[index].code.read_from, layouts[index].code.read_words);
        assert_eq!((read(0), read(3), read(7), read(8)), ((8, 15), (8, 21), (8, 24), (24, 26)));
    }

    #[test]
    fn a_field_in_two_words_is_refused() {
        let mut offsets = Offsets::of(12, false).unwrap();
        offsets.code.table = 140;
        assert_eq!(offsets.layout(), None);
        offsets.code.table = 4096;
        assert_eq!(offsets.layout(), None);
        offsets.code.table = u16::MAX - 7;
        assert_eq!(offsets.layout(), None);
    }
}
