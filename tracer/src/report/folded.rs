//! Folded stacks: `outermost;...;innermost bytes`, one line per stack with outstanding bytes, sorted.
//!
//! Around the frames of the program stand two more, as flame graph readers know them. The root is the
//! process's name, like the command name that `stackcollapse-perf` puts there; without its id, so that
//! equal stacks of forked workers are one. The leaf is the domain in brackets, `[malloc]`, where a memory
//! flame graph has the allocation function: a domain at the root would cut each function into one tower
//! per domain, and its width would no longer be all that is outstanding below it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;

use super::label::{frame_name, printable, process_name};
use super::{Format, Options, Render, RenderError, shown, write_error};
use crate::model::{Frame, FrameKind, Report, StackRow};

/// Renders folded stacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folded;

impl Render for Folded {
    fn render(&self, report: &Report, options: &Options, out: &mut dyn Write) -> Result<(), RenderError> {
        let mut text = String::new();
        for (stack, bytes) in fold(report, options) {
            text.push_str(&format!("{stack} {bytes}\n"));
        }
        out.write_all(text.as_bytes()).map_err(write_error(Format::Folded))
    }
}

/// Outstanding bytes by folded stack of the frames that are shown; equal stacks are one, also over processes.
pub(super) fn fold(report: &Report, options: &Options) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::<String, u64>::new();
    for row in report.stacks.iter().filter(|row| row.outstanding_bytes > 0) {
        let bytes = stacks.entry(fold_row(report, row, options)).or_default();
        *bytes = bytes.saturating_add(row.outstanding_bytes);
    }
    stacks
}

fn fold_row(report: &Report, row: &StackRow, options: &Options) -> String {
    let mut stack = match report.target_of(row) {
        Some(target) => clean(&process_name(target)).into_owned(),
        None => "[process not known]".to_owned(),
    };
    let mut push = |element: &str| {
        stack.push(';');
        stack.push_str(element);
    };
    if row.frames.is_empty() {
        push("[stack lost]");
    } else if shown::truncated(row.truncated.as_deref(), &row.frames, options).is_some() {
        // Below the outermost frame that is known: whatever called it may be missing.
        push("[truncated]");
    }
    for frame in shown::frames(&row.frames, options).into_iter().rev() {
        push(&element(frame));
    }
    push(&leaf(row));
    stack
}

/// The last element of a row's stack.
fn leaf(row: &StackRow) -> String {
    format!("[{}]", clean(&row.domain))
}

/// A frame as one element. A Python function bears its file and line, as in py-spy's folded stacks, because
/// one function often allocates on many, and many files have functions of one name; `_[k]` marks the kernel,
/// as in `stackcollapse-perf`.
pub(super) fn element(frame: &Frame) -> String {
    let name = frame_name(frame);
    let name = clean(&name);
    match (frame.kind, &frame.file, frame.line) {
        (FrameKind::Python, Some(file), Some(line)) => {
            let file = printable(file);
            format!("{name} ({}:{line})", clean(&file))
        }
        (FrameKind::Kernel, ..) => format!("{name}_[k]"),
        _ => name.into_owned(),
    }
}

/// A name without what separates frames.
fn clean(name: &str) -> Cow<'_, str> {
    let name = name.trim();
    if name.contains(';') { name.replace(';', ":").into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, python, report, row};
    use super::*;

    fn folded(rows: Vec<StackRow>) -> Vec<String> {
        fold(&report(rows), &Options::default())
            .into_iter()
            .map(|(stack, bytes)| format!("{stack} {bytes}"))
            .collect()
    }

    #[test]
    fn the_outermost_frame_comes_first_and_equal_stacks_are_one() {
        let rows = vec![
            row(3, &[frame("f"), frame("main")]),
            row(4, &[frame("f"), frame("main")]),
            row(1, &[frame("e"), frame("main")]),
            row(0, &[frame("empty")]),
        ];
        assert_eq!(folded(rows), ["prog;main;e;[malloc] 1", "prog;main;f;[malloc] 7"]);
    }

    #[test]
    fn processes_of_one_name_merge() {
        let mut forked = report(vec![row(3, &[frame("f")]), row(4, &[frame("f")])]);
        let mut worker = forked.targets[0].clone();
        worker.pid = 2;
        forked.targets.push(worker);
        forked.stacks[1].pid = 2;
        let fold = |report: &Report| fold(report, &Options::default());
        assert_eq!(fold(&forked), BTreeMap::from([("prog;f;[malloc]".to_owned(), 7)]));
        forked.targets.truncate(1);
        assert_eq!(fold(&forked).len(), 2);
    }

    #[test]
    fn a_process_id_that_came_again_is_two_processes() {
        let mut reused = report(vec![row(3, &[frame("f")]), row(4, &[frame("f")])]);
        let mut later = reused.targets[0].clone();
        later.command = vec!["/srv/other".to_owned()];
        reused.targets.push(later);
        reused.stacks[0].target = Some(0);
        reused.stacks[1].target = Some(1);
        let fold = |report: &Report| fold(report, &Options::default());
        let expected = [("other;f;[malloc]".to_owned(), 4), ("prog;f;[malloc]".to_owned(), 3)];
        assert_eq!(fold(&reused), BTreeMap::from(expected));
        reused.stacks[1].target = Some(2);
        assert!(fold(&reused).contains_key("[process not known];f;[malloc]"));
    }

    #[test]
    fn separators_in_names_are_replaced() {
        let rows = vec![row(1, &[frame("<[u8; 8]>::f\nx ")])];
        assert_eq!(folded(rows), ["prog;<[u8: 8]>::f\u{fffd}x;[malloc] 1"]);
    }

    #[test]
    fn lost_and_truncated_stacks_are_marked() {
        let mut cut = row(2, &[frame("f")]);
        cut.truncated = Some("deeper than 127 frames".to_owned());
        assert_eq!(
            folded(vec![row(1, &[]), cut]),
            ["prog;[stack lost];[malloc] 1", "prog;[truncated];f;[malloc] 2"]
        );
    }

    #[test]
    fn python_frames_bear_their_line_and_kernel_frames_a_mark() {
        let mut python = frame("Server.handle");
        python.kind = FrameKind::Python;
        python.file = Some("/srv/server.py".to_owned());
        python.line = Some(88);
        let mut kernel = frame("do_mmap");
        kernel.kind = FrameKind::Kernel;
        assert_eq!(
            folded(vec![row(1, &[kernel, python])]),
            ["prog;Server.handle (/srv/server.py:88);do_mmap_[k];[malloc] 1"]
        );
    }

    #[test]
    fn native_code_between_python_functions_is_folded_when_asked_for() {
        let stack = [frame("alloc"), python("g"), frame("list_sort"), python("f"), frame("main")];
        let report = report(vec![row(1, &stack)]);
        let fold = |native| fold(&report, &Options { native, ..Options::default() }).into_keys().next();
        let python = "f (/srv/app.py:7)";
        assert_eq!(fold(false), Some(format!("prog;{python};g (/srv/app.py:7);alloc;[malloc]")));
        assert_eq!(
            fold(true),
            Some(format!("prog;main;{python};list_sort;g (/srv/app.py:7);alloc;[malloc]"))
        );
    }
}
