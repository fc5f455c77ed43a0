//! What `targets/stacks` says of its own stacks, and where a report says otherwise.

use super::report::{FrameEntry, Report, Row};
use super::target::Target;
use serde::Deserialize;
use std::fmt::Write as _;

/// Function, file and line of a Python frame.
pub type PythonFrame = (String, String, Option<u32>);

/// One line of the plan: a block of a size of its own, and what its stack is. `planting.py` explains the
/// marks.
#[derive(Clone, Debug, Deserialize)]
pub struct Planted {
    size: u64,
    stack: Vec<PythonFrame>,
    #[serde(default)]
    via: Vec<(usize, String)>,
    #[serde(default)]
    direct: usize,
    #[serde(default)]
    below: Option<Vec<PythonFrame>>,
    #[serde(default)]
    own: bool,
    #[serde(default)]
    deep: bool,
    #[serde(default)]
    jit: bool,
    #[serde(default)]
    thread: bool,
}

/// The last line of the plan: what could not be done, and why.
#[derive(Debug, Deserialize)]
struct Skipped {
    skipped: Vec<(String, String)>,
}

/// A plan that has run.
#[derive(Debug)]
pub struct Plan {
    /// The blocks.
    pub planted: Vec<Planted>,
    /// What could not be done, and why.
    pub skipped: Vec<(String, String)>,
}

impl Plan {
    /// Asks the target, whose plan had this many lines, for all of them.
    pub fn of(target: &mut Target, lines: i64) -> Self {
        let mut told: Vec<String> =
            (0..lines).map(|number| target.ask_line(&format!("plan {number}"))).collect();
        let last = told.pop().expect("a plan has lines");
        let Skipped { skipped } = serde_json::from_str(&last).expect("what was skipped");
        let planted = told.iter().map(|line| serde_json::from_str(line).expect("a planted block"));
        Self { planted: planted.collect(), skipped }
    }
}

/// The interpreter of which a report tells.
#[derive(Clone, Copy, Debug)]
pub struct Interpreter {
    /// `11` of 3.11
    pub minor: u32,
    /// Without symbols of functions that are no interface.
    pub stripped: bool,
}

/// Where the report differs from the plan, one text for each block; none where it agrees.
pub fn differences(plan: &Plan, report: &Report, interpreter: Interpreter) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for planted in &plan.planted {
        let sized = |row: &&Row| row.outstanding_count == 1 && row.outstanding_bytes == planted.size;
        let rows: Vec<&Row> = report.stacks.iter().filter(sized).collect();
        let wrong = match rows[..] {
            [row] => wrong_with(planted, row, interpreter),
            _ => vec![format!("{} rows have one block of this size", rows.len())],
        };
        if !wrong.is_empty() {
            let place = planted.stack.first().map_or("no Python code".into(), shown);
            found.push(format!("{} bytes at {place}: {}", planted.size, wrong.join("; ")));
        }
    }
    found.extend(left_over(report));
    found
}

/// A block that an extension module asked for: at this place, and of how many bytes at least.
#[derive(Debug, Deserialize)]
pub struct Asked {
    module: String,
    bytes: u64,
    inner: Vec<String>,
    stack: Vec<PythonFrame>,
}

impl Asked {
    /// Asks the target, whose plan had this many lines, for all of them.
    pub fn of(target: &mut Target, lines: i64) -> Vec<Self> {
        let told = (0..lines).map(|number| target.ask_line(&format!("plan {number}")));
        told.map(|line| serde_json::from_str(&line).expect("a block that was asked for")).collect()
    }

    fn is_in(&self, row: &Row) -> bool {
        let inner = row.frames.iter().position(is_python).unwrap_or(row.frames.len());
        let python: Vec<_> = row.frames.iter().filter(|frame| is_python(frame)).map(python_frame).collect();
        let split = python.len().saturating_sub(self.stack.len());
        let called: Vec<&str> = python[..split].iter().map(|(function, ..)| function.as_str()).collect();
        row.frames[..inner].iter().any(|frame| self.has_module(frame))
            && python[split..] == self.stack[..]
            && called == self.inner
            && row.truncated.is_none()
            && wrong_end(false, row).is_none()
            && !row.frames.iter().any(is_interpreter)
    }

    fn has_module(&self, frame: &FrameEntry) -> bool {
        let file = frame.module.as_deref().and_then(|file| file.rsplit('/').next());
        file.is_some_and(|file| file.contains(&self.module))
    }
}

/// Which of the blocks have no stack that begins in their module, goes on with their Python frames and ends
/// where the program starts.
pub fn missing(asked: &[Asked], report: &Report) -> Vec<String> {
    let mut found = Vec::new();
    for block in asked {
        let bytes: u64 = report.stacks.iter().filter(|row| block.is_in(row)).map(|row| row.alloc_bytes).sum();
        if bytes < block.bytes {
            let by_module = |row: &&Row| row.frames.iter().any(|frame| block.has_module(frame));
            let mut rows: Vec<&Row> = report.stacks.iter().filter(by_module).collect();
            rows.sort_by_key(|row| std::cmp::Reverse(row.alloc_bytes));
            let rows = rows.iter().take(3).map(|row| {
                format!("\n    {} bytes (truncated: {:?}): {}", row.alloc_bytes, row.truncated, all_of(row))
            });
            found.push(format!(
                "{} at {}: {bytes} of {} bytes; the largest with this module are{}",
                block.module,
                shown(&block.stack[0]),
                block.bytes,
                rows.collect::<String>()
            ));
        }
    }
    found.extend(left_over(report));
    found
}

/// The rows that show an evaluator where Python frames stand for it; the first of them in full.
fn left_over(report: &Report) -> Vec<String> {
    let mut found: Vec<String> = report.stacks.iter().filter_map(interpreter_left_over).collect();
    let more = found.len().saturating_sub(5);
    found.truncate(5);
    if more > 0 {
        found.push(format!("{more} more rows show the interpreter's own frames"));
    }
    found
}

/// Whether a native frame is one of the interpreter, for which a Python frame should stand. Others of its kind
/// (`_PyEval_UnpackIterable`) are what an instruction calls.
fn is_interpreter(frame: &FrameEntry) -> bool {
    let runs_bytecode = |name: &str| name.starts_with("_PyEval_Eval") || name.starts_with("_PyEval_Vector");
    frame.kind == "native" && frame.function.as_deref().is_some_and(runs_bytecode)
}

fn is_python(frame: &FrameEntry) -> bool {
    frame.kind == "python"
}

/// Of a row of whatever block: a complete stack shows no evaluator behind the first Python frame. Before it,
/// one may be about to make the frame. A greenlet stands on the C stack of another.
fn interpreter_left_over(row: &Row) -> Option<String> {
    let by_greenlet =
        |frame: &FrameEntry| frame.module.as_deref().is_some_and(|file| file.contains("_greenlet"));
    if row.truncated.is_some() || row.frames.iter().any(by_greenlet) {
        return None;
    }
    let first = row.frames.iter().position(is_python);
    let left = row.frames.iter().enumerate().find(|(index, frame)| {
        let evaluates = frame.name().is_some_and(|name| name.starts_with("_PyEval_EvalFrameDefault"));
        is_interpreter(frame) && (evaluates || first.is_some_and(|first| first < *index))
    })?;
    Some(format!("frame {} of a complete stack is {}: {}", left.0, left.1.function.as_deref()?, all_of(row)))
}

fn wrong_with(planted: &Planted, row: &Row, interpreter: Interpreter) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(difference) = wrong_python(planted, row) {
        wrong.push(difference);
        // What lies between frames says nothing while the frames are wrong.
        return wrong;
    }
    if row.domain != "malloc" {
        wrong.push(format!("its domain is {}", row.domain));
    }
    if let Some(frame) = row.frames.iter().find(|frame| is_interpreter(frame)) {
        wrong.push(format!("{} is shown: {}", frame.function.as_deref().unwrap_or_default(), all_of(row)));
    }
    let start =
        |frame: &FrameEntry| matches!(frame.name(), Some("PyEval_EvalCode" | "Py_RunMain" | "_start"));
    let mut inner = row.frames.iter().take_while(|frame| !is_python(frame));
    if inner.any(start) {
        wrong.push(format!("the outer end comes first ({:?}): {}", row.truncated, all_of(row)));
    }
    let stands_alone = !planted.own && planted.below.is_none();
    let may_be_cut = planted.deep || planted.jit;
    if let Some(why) = row.truncated.as_deref().filter(|_| stands_alone && !may_be_cut) {
        wrong.push(format!("it ends early ({why}): {}", all_of(row)));
    } else if stands_alone && row.truncated.is_none() {
        wrong.extend(wrong_end(planted.thread, row));
        wrong.extend(interpreter_without_a_name(planted, row, interpreter));
    }
    wrong.extend(planted.via.iter().filter_map(|via| wrong_via(via, row, interpreter)));
    let between = |number: usize| frames_between(row, number).is_empty();
    // Before 3.11 each call of a Python function is one of C as well.
    if interpreter.minor >= 11 && !(0..planted.direct).all(between) {
        wrong.push(format!("native frames between calls from Python to Python: {}", all_of(row)));
    }
    wrong
}

/// Where the evaluator has no name, its frame is known by its place: from 3.11 on `PyEval_EvalCode`, which has
/// one everywhere, called what runs the outermost Python frame.
fn interpreter_without_a_name(planted: &Planted, row: &Row, interpreter: Interpreter) -> Option<String> {
    let outermost = row.frames.iter().rposition(is_python)?;
    let mut behind = row.frames[outermost + 1..].iter().filter(|frame| !frame.inlined);
    let entered = behind.next().is_some_and(|frame| frame.name() == Some("PyEval_EvalCode"));
    let expected = interpreter.minor >= 11 && !planted.thread;
    (expected && !entered).then(|| format!("no PyEval_EvalCode behind the Python frames: {}", all_of(row)))
}

fn wrong_python(planted: &Planted, row: &Row) -> Option<String> {
    let got: Vec<PythonFrame> =
        row.frames.iter().filter(|frame| is_python(frame)).map(python_frame).collect();
    let expected = &planted.stack;
    let also = planted.below.iter().map(|below| [&expected[..], below].concat());
    let mut right = std::iter::once(expected.clone()).chain(also).any(|stack| stack == got);
    // A cut stack keeps its inner end.
    let least = if planted.deep { 16 } else { 1 };
    let cut = (planted.deep || planted.jit) && row.truncated.is_some();
    right |= cut && got.len() >= least && expected.starts_with(&got);
    if right {
        return None;
    }
    let same = expected.iter().zip(&got).take_while(|(one, other)| one == other).count();
    let mut text = format!("{} of {} Python frames agree, {} shown", same, expected.len(), got.len());
    let name = |frame: Option<&PythonFrame>| frame.map_or("none".to_owned(), shown);
    let _ = write!(text, "; frame {same} is {}, not {}", name(expected.get(same)), name(got.get(same)));
    let _ = write!(text, "; truncated: {:?}; all: {}", row.truncated, all_of(row));
    Some(text)
}

/// A complete stack ends where the program starts, or the thread.
fn wrong_end(thread: bool, row: &Row) -> Option<String> {
    let last = row.frames.last()?;
    let right = match (last.kind.as_str(), last.module.as_deref(), last.function.as_deref()) {
        ("native", Some(file), _) if thread => {
            let file = file.rsplit('/').next().unwrap_or(file);
            file.starts_with("libc.so") || file.starts_with("libc-") || file.starts_with("ld-")
        }
        ("native", Some(file), function) => {
            file.contains("/python3") && function.is_none_or(|name| name == "_start")
        }
        _ => false,
    };
    let wanted = if thread { "in libc, where a thread starts" } else { "in _start of the executable" };
    (!right).then(|| format!("it does not end {wanted}: {}", all_of(row)))
}

fn wrong_via((number, text): &(usize, String), row: &Row, interpreter: Interpreter) -> Option<String> {
    let between = frames_between(row, *number);
    let holds = |part: &Option<String>| part.as_deref().is_some_and(|part| part.contains(text.as_str()));
    let named = between.iter().any(|frame| holds(&frame.function) || holds(&frame.module));
    // A file has its name in any case.
    let has_symbols = text.starts_with("lib") || !interpreter.stripped;
    let right = !between.is_empty() && (named || !has_symbols);
    (!right).then(|| format!("no native frame of {text:?} behind Python frame {number}: {}", all_of(row)))
}

/// The native frames between a Python frame and the one that called it.
fn frames_between(row: &Row, number: usize) -> &[FrameEntry] {
    let mut places =
        row.frames.iter().enumerate().filter(|(_, frame)| is_python(frame)).map(|(place, _)| place);
    let Some(inner) = places.nth(number) else { return &[] };
    let outer = places.next().unwrap_or(row.frames.len());
    &row.frames[inner + 1..outer]
}

fn python_frame(frame: &FrameEntry) -> PythonFrame {
    let text = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".into());
    (text(&frame.function), text(&frame.file), frame.line)
}

fn shown((function, file, line): &PythonFrame) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    format!("{function} {file}:{}", line.map_or("?".into(), |line| line.to_string()))
}

/// All frames of a row, innermost first, in one line.
fn all_of(row: &Row) -> String {
    let mut parts: Vec<String> = Vec::new();
    for frame in &row.frames {
        parts.push(if is_python(frame) {
            shown(&python_frame(frame))
        } else {
            let file = frame.module.as_deref().and_then(|file| file.rsplit('/').next()).unwrap_or("?");
            match &frame.function {
                Some(function) => format!("[{function}]"),
                None => format!("[{file}+{:#x}]", frame.offset.unwrap_or(0)),
            }
        });
    }
    // A deep stack says enough by its ends.
    if parts.len() > 60 {
        let cut = parts.len() - 60;
        parts.splice(40..40 + cut, [format!("… {cut} more …")]);
    }
    parts.join(" < ")
}

#[cfg(test)]
mod tests;
