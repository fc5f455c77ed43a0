//! Names of frames and processes for people: cleaned, and shortened where they must be.

use std::borrow::Cow;

use super::wrap::columns;
use crate::model::{Frame, FrameKind, Target};

/// What stands for something left out.
const ELLIPSIS: &str = "...";

/// `text` without the characters that would move a terminal's cursor, reorder a line, or be no XML.
///
/// Command lines and symbol names come from the traced program, which may be hostile.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let unsafe_to_print = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    if text.contains(unsafe_to_print) {
        text.replace(unsafe_to_print, "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// The last component of a path.
pub(super) fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some((_, name)) if !name.is_empty() => name,
        _ => path,
    }
}

/// What a frame is called: its function, else `module+0xoffset`, else its address.
pub(super) fn frame_name(frame: &Frame) -> Cow<'_, str> {
    if let Some(function) = &frame.function {
        return printable(function);
    }
    if frame.kind == FrameKind::Python {
        return "[Python function not known]".into();
    }
    match (&frame.module, frame.offset, &frame.address) {
        (Some(module), Some(offset), _) => format!("{}+{offset:#x}", printable(base_name(module))).into(),
        (Some(module), None, _) => format!("[{}]", printable(base_name(module))).into(),
        (None, _, Some(address)) => printable(address),
        (None, _, None) => "[unknown]".into(),
    }
}

/// Where a frame's code is: `file:line`, else the module of a named function; empty where the name says it.
pub(super) fn frame_place(frame: &Frame) -> String {
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{}:{line}", printable(file)),
        (Some(file), None) => printable(file).into_owned(),
        (None, _) if frame.kind == FrameKind::Kernel => "[kernel]".to_owned(),
        (None, _) => match &frame.module {
            Some(module) if frame.function.is_some() => {
                format!("[{}]", printable(base_name(module)))
            }
            _ => String::new(),
        },
    }
}

/// A process's command line; arguments with spaces in quotes.
pub(super) fn command_line(target: &Target) -> String {
    if target.command.is_empty() {
        return match &target.exe {
            Some(exe) => printable(exe).into_owned(),
            None => "[command not known]".to_owned(),
        };
    }
    let words: Vec<_> = target
        .command
        .iter()
        .map(|word| {
            let word = printable(word);
            if word.is_empty() || word.contains(char::is_whitespace) {
                format!("'{word}'").into()
            } else {
                word
            }
        })
        .collect();
    words.join(" ")
}

/// A process's short name: the last component of its command, else of its executable.
pub(super) fn process_name(target: &Target) -> Cow<'_, str> {
    match (target.command.first(), &target.exe) {
        (Some(command), _) if !command.is_empty() => printable(base_name(command)),
        (_, Some(exe)) => printable(base_name(exe)),
        _ => "[command not known]".into(),
    }
}

/// `path` in at most `max` columns, cut at its start: the end of a path says most.
pub(super) fn shorten_path(path: &str, max: usize) -> Cow<'_, str> {
    let length = columns(path);
    if length <= max {
        return path.into();
    }
    let keep = max.saturating_sub(ELLIPSIS.len());
    let cut = path.char_indices().nth(length - keep).map_or(path.len(), |(at, _)| at);
    let tail = &path[cut..];
    // Whole components where one fits.
    let tail = match tail.find('/') {
        Some(slash) if slash + 1 < tail.len() => &tail[slash..],
        _ => tail,
    };
    format!("{ELLIPSIS}{tail}").into()
}

/// `text` in at most `max` columns, cut at its end.
pub(super) fn shorten_end(text: &str, max: usize) -> Cow<'_, str> {
    if columns(text) <= max {
        return text.into();
    }
    let keep = max.saturating_sub(ELLIPSIS.len());
    let head: String = text.chars().take(keep).collect();
    format!("{}{ELLIPSIS}", head.trim_end()).into()
}

/// A function's name in at most `max` columns.
///
/// Template arguments and parameter lists go first, the most deeply nested and then the longest before the
/// others, until it fits: `std::map<...>::insert(...)` says more than the first letters of a type. Then the
/// parameter list goes altogether, then the outer namespaces. What is still too long is cut in the middle.
pub(super) fn shorten_name(name: &str, max: usize) -> Cow<'_, str> {
    if columns(name) <= max {
        return name.into();
    }
    let mut short = name.to_owned();
    while columns(&short) > max {
        let Some(group) = most_dispensable(&short) else {
            return cut(&short, max).into();
        };
        short.replace_range(group, ELLIPSIS);
    }
    short.into()
}

/// A Python function's qualified name in at most `max` columns: the outer classes and functions go first.
pub(super) fn shorten_python_name(name: &str, max: usize) -> Cow<'_, str> {
    if columns(name) <= max {
        return name.into();
    }
    let inner = name.match_indices('.').map(|(at, _)| &name[at..]);
    // What is local to a function says nothing without that function.
    let mut inner = inner.filter(|rest| rest.len() > 1 && !rest.starts_with(".<locals>"));
    inner
        .find(|rest| ELLIPSIS.len() + columns(rest) <= max)
        .map_or_else(|| cut_middle(name, max), |rest| format!("{ELLIPSIS}{rest}"))
        .into()
}

/// A name whose brackets are empty already, in at most `max` columns.
fn cut(name: &str, max: usize) -> String {
    let bare = name.trim_end_matches(" const").trim_end_matches("(...)");
    if columns(bare) <= max {
        return bare.to_owned();
    }
    bare.match_indices("::")
        .map(|(at, _)| &bare[at..])
        // `::<...>` are the arguments of what stands before it.
        .filter(|rest| !rest.starts_with("::<"))
        .find(|rest| ELLIPSIS.len() + columns(rest) <= max)
        .map_or_else(|| cut_middle(bare, max), |rest| format!("{ELLIPSIS}{rest}"))
}

/// What lies between the brackets of the group to drop next.
fn most_dispensable(name: &str) -> Option<std::ops::Range<usize>> {
    bracketed(name)
        .into_iter()
        .filter(|(_, inside)| {
            let text = &name[inside.clone()];
            // The self type of a Rust method starts the name and is what it is about.
            inside.start > 1 && columns(text) > ELLIPSIS.len() && text != "anonymous namespace"
        })
        .max_by_key(|(depth, inside)| (*depth, inside.len()))
        .map(|(_, inside)| inside)
}

/// Depth and inside of every pair of `<>` and `()`. Operators and arrows are no brackets.
fn bracketed(name: &str) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut groups = Vec::new();
    for (at, c) in name.char_indices() {
        let before = &name[..at];
        match c {
            '<' | '>' if is_operator(before) || (c == '>' && before.ends_with('-')) => {}
            '<' | '(' => open.push((c, at + 1)),
            '>' | ')' => {
                let opening = if c == '>' { '<' } else { '(' };
                // A `>` never closes what lies outside the parentheses that it is in.
                let partner = match c {
                    '>' => open.len().checked_sub(1).filter(|top| open[*top].0 == '<'),
                    _ => open.iter().rposition(|(bracket, _)| *bracket == opening),
                };
                if let Some(depth) = partner {
                    groups.push((depth, open[depth].1..at));
                    open.truncate(depth);
                }
            }
            _ => {}
        }
    }
    groups
}

/// Whether an angle bracket after `before` belongs to the name of a C++ operator (`operator<<`).
fn is_operator(before: &str) -> bool {
    before.trim_end_matches(['<', '>', '=', '-']).ends_with("operator")
}

/// `text` without its middle; the end, which names the function, keeps the larger part.
fn cut_middle(text: &str, max: usize) -> String {
    let keep = max.saturating_sub(ELLIPSIS.len());
    let head: String = text.chars().take(keep * 2 / 5).collect();
    let tail_columns = keep - columns(&head);
    let tail: String = text.chars().skip(columns(text).saturating_sub(tail_columns)).collect();
    format!("{head}{ELLIPSIS}{tail}")
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::frame;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_places_fall_back_step_by_step() {
        let mut f = frame("f");
        f.module = Some("/usr/lib/libz.so.1".to_owned());
        f.offset = Some(0x1f3a);
        f.address = Some("0x7f0000001f3a".to_owned());
        assert_eq!((&*frame_name(&f), &*frame_place(&f)), ("f", "[libz.so.1]"));
        f.function = None;
        assert_eq!((&*frame_name(&f), &*frame_place(&f)), ("libz.so.1+0x1f3a", ""));
        f.module = None;
        assert_eq!(frame_name(&f), "0x7f0000001f3a");
        f.address = None;
        assert_eq!(frame_name(&f), "[unknown]");
        f.kind = FrameKind::Python;
        assert_eq!((&*frame_name(&f), &*frame_place(&f)), ("[Python function not known]", ""));
        f.kind = FrameKind::Kernel;
        assert_eq!(frame_place(&f), "[kernel]");
        f.file = Some("/a/b.c".to_owned());
        f.line = Some(3);
        assert_eq!(frame_place(&f), "/a/b.c:3");
    }

    #[test]
    fn a_long_python_name_keeps_its_end() {
        let name = "Application.make_handler.<locals>.wrapper.<locals>.<lambda>";
        assert_eq!(shorten_python_name(name, 80), name);
        assert_eq!(shorten_python_name(name, 50), "....wrapper.<locals>.<lambda>");
        assert_eq!(shorten_python_name(name, 20), "....<lambda>");
        assert_eq!(shorten_python_name("a_function_of_a_very_long_name", 20), "a_func...y_long_name");
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(printable("\u{202e}evil"), "\u{fffd}evil");
        assert_eq!(printable("straße"), "straße");
    }

    #[test]
    fn commands_quote_and_fall_back() {
        let target = |command: &[&str], exe: Option<&str>| Target {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            exe: exe.map(str::to_owned),
            ..Target::default()
        };
        assert_eq!(command_line(&target(&["a", "b c", ""], None)), "a 'b c' ''");
        assert_eq!(command_line(&target(&[], Some("/bin/x"))), "/bin/x");
        assert_eq!(command_line(&target(&[], None)), "[command not known]");
        assert_eq!(process_name(&target(&["/bin/sh", "-c"], None)), "sh");
        assert_eq!(process_name(&target(&[], Some("/bin/x"))), "x");
    }

    #[test]
    fn paths_keep_their_end_by_components() {
        assert_eq!(shorten_path("/a/b.c:1", 20), "/a/b.c:1");
        assert_eq!(
            shorten_path("/rustc/0123456789abcdef/library/alloc/src/vec/mod.rs:88", 30),
            ".../alloc/src/vec/mod.rs:88"
        );
        assert_eq!(shorten_path("averylongfilename.cpp:1", 10), "...e.cpp:1");
    }

    #[test]
    fn templates_shrink_from_the_inside_and_keep_the_function() {
        let name = "std::vector<std::pair<std::string, Record<int, 8>>, Pool<Record<int, 8>>>::\
                    emplace_back<Record<int, 8> const&>(Record<int, 8> const&)";
        assert_eq!(
            shorten_name(name, 70),
            "std::vector<...>::emplace_back<Record<...> const&>(Record<...> const&)"
        );
        assert_eq!(shorten_name(name, 200), name);
        for (max, short) in [
            (40, "std::vector<...>::emplace_back<...>(...)"),
            (39, "std::vector<...>::emplace_back<...>"),
            (34, "...::emplace_back<...>"),
            (16, "std::...ack<...>"),
        ] {
            assert_eq!(shorten_name(name, max), short);
        }
        assert_eq!(
            shorten_name("<alloc::vec::Vec<T, A> as core::iter::Extend<T>>::extend::<I>", 30),
            "...::Extend<T>>::extend::<I>"
        );
    }

    #[test]
    fn operators_and_arrows_are_no_brackets() {
        for name in ["operator<<", "Stream::operator->", "operator<=>", "a::operator>>", "fn -> x"] {
            assert_eq!(bracketed(name), [], "{name}");
        }
        assert_eq!(bracketed("operator< <int>").len(), 1);
        assert_eq!(
            shorten_name("(anonymous namespace)::Parser<Token, State>::run", 40),
            "(anonymous namespace)::Parser<...>::run"
        );
    }

    #[test]
    fn a_name_without_brackets_loses_its_middle() {
        let short = shorten_name("a_function_whose_name_was_generated_by_a_machine", 20);
        assert_eq!(short, "a_func...y_a_machine");
    }

    proptest! {
        #[test]
        fn whatever_the_name_it_fits(name in "[a-z<>():,& é-]{0,80}", max in 8usize..60) {
            prop_assert!(columns(&shorten_name(&name, max)) <= max);
            prop_assert!(columns(&shorten_path(&name, max)) <= max);
            prop_assert!(columns(&shorten_end(&name, max)) <= max);
        }
    }
}
