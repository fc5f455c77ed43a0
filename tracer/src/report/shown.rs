//! Which frames of a stack text and pictures show.

use super::Options;
use crate::model::{Frame, FrameKind, PYTHON_UNPLACED};

/// The frames of a stack that are shown, innermost first.
///
/// Who reads a Python program's stack wants its functions, and the native code that the innermost of them
/// called: what allocated. The native code between and behind them is how the interpreter calls, and only
/// shown when asked for. A stack without Python is shown whole.
pub(super) fn frames<'a>(frames: &'a [Frame], options: &Options) -> Vec<&'a Frame> {
    let hides = hides_native(frames, options);
    let mut is_leaf = true;
    let is_shown = |frame: &&Frame| {
        let is_python = frame.kind == FrameKind::Python;
        is_leaf &= !is_python;
        is_leaf || is_python || !hides
    };
    frames.iter().filter(is_shown).collect()
}

/// Whether some frame is left out.
pub(super) fn hides_native(frames: &[Frame], options: &Options) -> bool {
    let mut behind_leaf = frames.iter().skip_while(|frame| frame.kind != FrameKind::Python);
    !options.native && behind_leaf.any(|frame| frame.kind != FrameKind::Python)
}

/// Why what is shown of a stack is not whole, where it is not; `reason` is why the stack is not.
pub(super) fn truncated<'a>(reason: Option<&'a str>, frames: &[Frame], options: &Options) -> Option<&'a str> {
    // Python frames by themselves are in order wherever they belong.
    reason.filter(|reason| *reason != PYTHON_UNPLACED || !hides_native(frames, options))
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, python};
    use super::*;

    fn shown(stack: &[Frame], native: bool) -> Vec<&str> {
        let options = Options { native, ..Options::default() };
        let names: Vec<_> =
            frames(stack, &options).iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert_eq!(names.len() < stack.len(), hides_native(stack, &options));
        names
    }

    #[test]
    fn behind_the_innermost_python_frame_only_python_is_shown() {
        let stack = ["inflate", "zlib_compress"].map(frame).into_iter();
        let stack = stack.chain([python("pack"), python("each"), frame("list_sort"), python("<module>")]);
        let stack: Vec<Frame> = stack.chain([frame("Py_RunMain"), frame("_start")]).collect();
        assert_eq!(shown(&stack, false), ["inflate", "zlib_compress", "pack", "each", "<module>"]);
        assert_eq!(shown(&stack, true).len(), stack.len());
    }

    #[test]
    fn python_by_itself_is_whole_wherever_it_belongs() {
        let stack = [frame("f"), frame("_start"), python("g"), frame("h")];
        let unplaced = Some(PYTHON_UNPLACED);
        let native = Options { native: true, ..Options::default() };
        assert_eq!(truncated(unplaced, &stack, &Options::default()), None);
        assert_eq!(truncated(unplaced, &stack, &native), Some(PYTHON_UNPLACED));
        let cut = Some("no unwind information");
        assert_eq!(truncated(cut, &stack, &Options::default()), cut);
    }

    #[test]
    fn a_stack_of_one_kind_is_shown_whole() {
        for native in [false, true] {
            assert_eq!(shown(&["f", "main"].map(frame), native), ["f", "main"]);
            assert_eq!(shown(&["f", "<module>"].map(python), native), ["f", "<module>"]);
            assert_eq!(shown(&[], native), [""; 0]);
        }
    }
}
