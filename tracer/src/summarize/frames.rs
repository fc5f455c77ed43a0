//! The frames of a stack as the report has them: named, and without the interpreter's own functions where
//! Python frames stand for them.

use std::collections::HashMap;

use tracer_common::event::WalkEnd;
use tracer_common::frame::Frame as Word;

use super::Names;
use crate::model::{CodeAddr, Frame, FrameKind, NormalizedStack};
use crate::symbolize::python;
use crate::trace::Codes;

/// Functions of CPython that run bytecode; parts that a compiler split off bear a suffix behind a dot. The
/// tail-calling interpreter (3.14) has a function for each instruction.
const EVALUATORS: [&str; 5] = [
    "_PyEval_EvalFrameDefault",
    "_PyEval_EvalFrame",
    "_PyEval_Vector",
    // Up to 3.9, 3.9 and 3.10.
    "_PyEval_EvalCodeWithName",
    "_PyEval_EvalCode",
];
const TAIL_CALLING_EVALUATOR: &str = "_TAIL_CALL_";

/// Makes the frames of one target's stacks.
pub struct Framer<'a> {
    names: &'a Names,
    codes: &'a Codes,
    /// Python frames by code object and unit: a line table is gone through once for each.
    python: HashMap<(u32, u32), Frame>,
}

impl<'a> Framer<'a> {
    /// Native code is called as `names` says, Python functions by `codes`.
    pub fn new(names: &'a Names, codes: &'a Codes) -> Self {
        Self { names, codes, python: HashMap::new() }
    }

    /// The frames of `stack`, innermost first.
    pub fn frames(&mut self, stack: &NormalizedStack) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(stack.frames.len());
        // Of each frame, whether it is the interpreter's.
        let mut is_evaluator = Vec::with_capacity(stack.frames.len());
        for (place, word) in stack.frames.iter().zip(&stack.words) {
            let before = frames.len();
            self.push(place, *word, &mut frames);
            let added = &frames[before..];
            // What is inlined into the interpreter is part of it.
            let contains = added.iter().rposition(is_evaluator_function);
            is_evaluator.extend((0..added.len()).map(|index| contains.is_some_and(|last| index <= last)));
        }
        add_nameless(&frames, &mut is_evaluator);
        drop_stood_for(&mut frames, &is_evaluator, may_be_out_of_place(stack.end));
        frames
    }

    /// Appends the frames at one place, the functions inlined there first.
    fn push(&mut self, place: &CodeAddr, word: u64, frames: &mut Vec<Frame>) {
        let address = match Word::from_word(word) {
            Word::Return(addr) | Word::Interrupted(addr) => Some(format!("{addr:#x}")),
            Word::Python { .. } => None,
        };
        if let CodeAddr::Python { code, unit } = *place {
            frames.push(match code {
                Some(number) => {
                    let named = || python::frame(self.codes.get(number), unit);
                    self.python.entry((number, unit)).or_insert_with(named).clone()
                }
                None => python::frame(None, unit),
            });
            return;
        }
        match self.names.get(place) {
            Some(named) => {
                frames.extend(named.iter().cloned().map(|frame| Frame { address: address.clone(), ..frame }));
            }
            None => frames.push(Frame {
                kind: FrameKind::Native,
                function: None,
                file: None,
                line: None,
                module: None,
                address,
                offset: None,
                inlined: false,
            }),
        }
    }
}

/// Whether a frame is of a function that runs bytecode.
fn is_evaluator_function(frame: &Frame) -> bool {
    let Some(function) = frame.function.as_deref().filter(|_| frame.kind == FrameKind::Native) else {
        return false;
    };
    let whole = function.split('.').next().unwrap_or(function);
    EVALUATORS.contains(&whole) || function.starts_with(TAIL_CALLING_EVALUATOR)
}

/// Between a Python frame and a function that runs bytecode lies such a function too, though a stripped file
/// has no name for it: `_PyEval_EvalCode` of Debian's 3.9.
fn add_nameless(frames: &[Frame], is_evaluator: &mut [bool]) {
    for (index, window) in frames.windows(3).enumerate() {
        let [inner, frame, outer] = window else { continue };
        let nameless = frame.kind == FrameKind::Native && frame.function.is_none();
        if nameless
            && inner.kind == FrameKind::Python
            && is_evaluator[index + 2]
            && frame.module == outer.module
        {
            is_evaluator[index + 1] = true;
        }
    }
}

/// Whether Python frames may stand elsewhere than the interpreter's that run them: then they come last.
fn may_be_out_of_place(end: WalkEnd) -> bool {
    match end {
        WalkEnd::Complete | WalkEnd::PythonUnreadable => false,
        WalkEnd::PythonUnplaced
        | WalkEnd::TooDeep
        | WalkEnd::NoUnwindInfo
        | WalkEnd::Unsupported
        | WalkEnd::Unreadable
        | WalkEnd::Astray => true,
    }
}

/// Drops the runs of the interpreter's frames that stand next to a Python frame; with `all`, every one of a
/// stack that has Python frames.
fn drop_stood_for(frames: &mut Vec<Frame>, is_evaluator: &[bool], all: bool) {
    let all = all && frames.iter().any(|frame| frame.kind == FrameKind::Python);
    let is_python = |index: usize| frames.get(index).is_some_and(|frame| frame.kind == FrameKind::Python);
    let mut is_dropped = vec![false; frames.len()];
    let mut start = 0;
    while start < frames.len() {
        let length = is_evaluator[start..].iter().take_while(|is| **is).count();
        let end = start + length;
        if length > 0 && (all || is_python(end) || start.checked_sub(1).is_some_and(is_python)) {
            is_dropped[start..end].fill(true);
        }
        start = end.max(start + 1);
    }
    let mut is_dropped = is_dropped.into_iter();
    frames.retain(|_| !is_dropped.next().unwrap_or(false));
}

#[cfg(test)]
mod tests {
    use tracer_common::frame::{interrupted, python as python_word};

    use super::*;
    use crate::ledger::SizeLimits;
    use crate::model::{Event, RawCode, RawStack};
    use crate::trace::Trace;

    fn native(function: &str) -> Frame {
        Frame {
            kind: FrameKind::Native,
            function: Some(function.to_owned()),
            file: None,
            line: None,
            module: None,
            address: None,
            offset: None,
            inlined: false,
        }
    }

    /// The functions of a stack of these: `py` is a Python frame, `?` a native one without a name, `in>out` is
    /// inlined.
    fn kept(stack: &[&str]) -> Vec<String> {
        kept_of(WalkEnd::Complete, stack)
    }

    fn kept_of(end: WalkEnd, stack: &[&str]) -> Vec<String> {
        let mut names = Names::new();
        let mut words = Vec::new();
        for (index, element) in stack.iter().enumerate() {
            let addr = 0x1000 + index as u64;
            let mut frames: Vec<Frame> = element.split('>').map(native).collect();
            let inlined = frames.len() - 1;
            frames[..inlined].iter_mut().for_each(|frame| frame.inlined = true);
            if *element == "?" {
                frames[0].function = None;
            }
            names.insert(CodeAddr::Unmapped { addr }, frames);
            words.push(if *element == "py" { python_word(0x8000, 0) } else { addr });
        }
        framed(&names, end, &words)
            .into_iter()
            .map(|frame| match frame.kind {
                FrameKind::Python => "py".to_owned(),
                _ => frame.function.unwrap_or("?".to_owned()),
            })
            .collect()
    }

    fn framed(names: &Names, end: WalkEnd, words: &[u64]) -> Vec<Frame> {
        let mut trace = Trace::new(SizeLimits::ALL);
        let code = RawCode {
            header: tracer_common::code::CodeHeader {
                code_addr: 0x9000,
                first_line: 7,
                minor: 9,
                name_kind: 1,
                name_chars: 1,
                table_field_bytes: 1232,
                ..Default::default()
            },
            name: (*b"f").into(),
            file: [].into(),
            table: [].into(),
        };
        trace.apply(&Event::Code(code), &[]);
        let raw = RawStack {
            header: Default::default(),
            id: 1,
            end,
            asked: Default::default(),
            words: words.into(),
        };
        trace.apply(&Event::Stack(raw), &[]);
        Framer::new(names, &trace.codes).frames(&trace.stacks[&1])
    }

    #[test]
    fn the_interpreter_is_left_out_where_python_frames_stand_for_it() {
        let loop_ = "_PyEval_EvalFrameDefault";
        assert_eq!(
            kept(&["f", loop_, "py", "py", "_PyEval_Vector", "call", loop_, "py", "main"]),
            ["f", "py", "py", "call", "py", "main"]
        );
        for part in [
            "_PyEval_EvalFrameDefault.cold",
            "_PyEval_EvalFrame.part.0",
            "_TAIL_CALL_CALL_PY_EXACT_ARGS.llvm.1",
        ] {
            assert_eq!(kept(&["f", part, "py", part, "main"]), ["f", "py", "main"]);
        }
        // Nothing stands for it here; and what only looks like it is something else.
        assert_eq!(kept(&["f", loop_, "main"]), ["f", loop_, "main"]);
        assert_eq!(kept(&[loop_, "call", "py"]), [loop_, "call", "py"]);
        let others = ["_PyEval_MatchClass", "py", "PyEval_EvalCode"];
        assert_eq!(kept(&others), others);
    }

    #[test]
    fn a_part_of_the_interpreter_without_a_name_goes_with_the_next() {
        let named = "_PyEval_EvalCodeWithName";
        assert_eq!(kept(&["f", "py", "?", named, "main"]), ["f", "py", "main"]);
        for others in [["py", "?", "main"], ["?", named, "main"], ["py", "f", named]] {
            assert_eq!(kept(&others), others);
        }
    }

    #[test]
    fn the_interpreter_is_left_out_where_its_python_frames_come_last() {
        let stack = ["f", "_PyEval_EvalFrameDefault", "call", "_start", "py", "py"];
        for end in [WalkEnd::PythonUnplaced, WalkEnd::NoUnwindInfo] {
            assert_eq!(kept_of(end, &stack), ["f", "call", "_start", "py", "py"]);
        }
        // Its Python frames may be those that are missing, or there are none.
        assert_eq!(kept_of(WalkEnd::PythonUnreadable, &stack), stack);
        assert_eq!(kept_of(WalkEnd::PythonUnplaced, &stack[..4]), stack[..4]);
    }

    #[test]
    fn what_is_inlined_into_the_interpreter_goes_with_it() {
        assert_eq!(kept(&["f", "Py_DECREF>_PyEval_EvalFrameDefault", "py"]), ["f", "py"]);
        // The interpreter inlined into something else takes nothing along but itself.
        assert_eq!(
            kept(&["py", "_PyEval_EvalFrame>_PyEval_Vector>_PyFunction_Vectorcall", "main"]),
            ["py", "_PyFunction_Vectorcall", "main"]
        );
    }

    #[test]
    fn python_frames_have_no_address_and_interrupted_ones_have_their_own() {
        let frames = framed(
            &Names::new(),
            WalkEnd::Complete,
            &[0x10, interrupted(0x20), python_word(0x9000, 3), python_word(0x9008, 3)],
        );
        let addresses: Vec<_> = frames.iter().map(|frame| frame.address.as_deref()).collect();
        assert_eq!(addresses, [Some("0x10"), Some("0x20"), None, None]);
        assert_eq!((frames[2].function.as_deref(), frames[2].line), (Some("f"), Some(7)));
        assert_eq!((frames[3].kind, &frames[3].function), (FrameKind::Python, &None));
    }
}
