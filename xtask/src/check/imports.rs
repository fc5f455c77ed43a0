//! Which top modules of its crate a Rust source names, read from its tokens.

use std::collections::BTreeSet;

/// The top modules of the crate that `source` names by a path from `crate` or `super`.
///
/// `module` is the path of the file's own module from the crate's root: `["report", "text"]`. Comments,
/// strings and modules named `tests` are passed over. A path that stays in the file's own top module is
/// none. Text that is not Rust gives an answer of no meaning, never an error.
pub fn top_modules_named(source: &str, module: &[String]) -> BTreeSet<String> {
    let tokens = tokens(source);
    let mut named = BTreeSet::new();
    // The inline modules that the walk is in, with the depth of braces at which each ends.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        match (&tokens[at], tokens.get(at + 1), tokens.get(at + 2)) {
            (Token::Word(keyword), Some(Token::Word(name)), Some(Token::Open)) if keyword == "mod" => {
                depth += 1;
                inline.push((name.clone(), depth));
                at += 3;
                continue;
            }
            (Token::Open, ..) => depth += 1,
            (Token::Close, ..) => {
                if inline.last().is_some_and(|(_, ends_at)| *ends_at == depth) {
                    inline.pop();
                }
                depth = depth.saturating_sub(1);
            }
            (Token::Word(start), Some(Token::PathSeparator), _) if start == "crate" || start == "super" => {
                let after_separator = at > 0 && tokens[at - 1] == Token::PathSeparator;
                if !after_separator && inline.iter().all(|(name, _)| name != "tests") {
                    let here: Vec<_> =
                        module.iter().chain(inline.iter().map(|(name, _)| name)).cloned().collect();
                    named.extend(heads(&tokens[at..], &here));
                }
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(own) = module.first() {
        named.remove(own);
    }
    named
}

/// The first names after `crate`, for the path (or the group of paths) that `tokens` begin with.
fn heads(tokens: &[Token], here: &[String]) -> Vec<String> {
    let mut base = here;
    let mut at = 0;
    while let [Token::Word(word), Token::PathSeparator, ..] = &tokens[at..] {
        match word.as_str() {
            "crate" => base = &[],
            "super" => base = &base[..base.len().saturating_sub(1)],
            _ => break,
        }
        at += 2;
    }
    if let Some(top) = base.first() {
        return vec![top.clone()];
    }
    match tokens.get(at) {
        Some(Token::Word(name)) => vec![name.clone()],
        Some(Token::Open) => group_heads(&tokens[at + 1..]),
        _ => Vec::new(),
    }
}

/// The first name of each path in a `use` group, whose opening brace is just behind.
fn group_heads(tokens: &[Token]) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 1;
    let mut at_start = true;
    for token in tokens {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            Token::Word(name) if depth == 1 && at_start => heads.push(name.clone()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        at_start = depth == 1 && matches!(token, Token::Other(','));
    }
    heads
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    PathSeparator,
    Open,
    Close,
    Other(char),
}

/// Words, `::`, braces and other signs; without white space, comments, and the insides of literals.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment_len(rest)
        } else if let Some(len) = string_len(rest) {
            len
        } else if rest.starts_with("::") {
            tokens.push(Token::PathSeparator);
            2
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..len].to_owned()));
            len
        } else {
            match first {
                '{' => tokens.push(Token::Open),
                '}' => tokens.push(Token::Close),
                _ if first.is_whitespace() => {}
                _ => tokens.push(Token::Other(first)),
            }
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    tokens
}

/// Length of the block comment that `text` begins with; they nest.
fn block_comment_len(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of the string or character literal that `text` begins with, if it does.
fn string_len(text: &str) -> Option<usize> {
    if let Some(len) = raw_string_len(text) {
        return Some(len);
    }
    let prefix = usize::from(text.starts_with("b\"") || text.starts_with("c\"") || text.starts_with("b'"));
    let quote = text[prefix..].chars().next().filter(|quote| ['"', '\''].contains(quote))?;
    let mut escaped = false;
    for (at, c) in text[prefix + 1..].char_indices() {
        let inside = at;
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote && inside > 0 || c == '"' && quote == '"' => {
                return Some(prefix + 1 + at + c.len_utf8());
            }
            // More than one character after a single quote is a lifetime, and no literal.
            _ if quote == '\'' && inside > 0 && !text[prefix + 1..].starts_with('\\') => {
                return None;
            }
            _ => {}
        }
    }
    None
}

/// Length of the raw string (`r"…"`, `br#"…"#`) that `text` begins with, if it does.
fn raw_string_len(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let body = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    text[body..].find(&end).map(|at| body + at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str, module: &str) -> Vec<String> {
        let module: Vec<_> = module.split("::").map(str::to_owned).collect();
        top_modules_named(source, &module).into_iter().collect()
    }

    #[test]
    fn paths_and_groups_are_found() {
        let source = "use crate::model::Frame;\nuse crate::{collect::{Event, ring}, ledger};\nfn f() { crate::verdict::judge(); }";
        assert_eq!(named(source, "report"), ["collect", "ledger", "model", "verdict"]);
    }

    #[test]
    fn the_own_module_and_other_crates_are_no_edge() {
        assert_eq!(
            named("use crate::report::text; use std::collections::HashMap; use aya::maps;", "report::json"),
            [""; 0]
        );
    }

    #[test]
    fn super_is_resolved_from_where_it_stands() {
        assert_eq!(named("use super::model::Frame;", "report"), ["model"]);
        assert_eq!(named("use super::text;", "report::json"), [""; 0]);
        assert_eq!(named("use super::super::model::Frame;", "report::json"), ["model"]);
        assert_eq!(
            named("mod rows { use super::super::model::Frame; } use super::ledger;", "report"),
            ["ledger", "model"]
        );
    }

    #[test]
    fn comments_strings_and_tests_are_passed_over() {
        let source = "//! [`crate::model`]\n/* crate::a /* nested */ crate::b */\nconst A: &str = \"crate::c \\\" {\";\n\
                      const B: &str = r#\"crate::d \" {\"#; fn f<'a>(x: &'a str) -> char { '{' }\n\
                      #[cfg(test)]\nmod tests { use super::*; use crate::cli; }\nuse crate::ledger;";
        assert_eq!(named(source, "report"), ["ledger"]);
    }

    #[test]
    fn visibility_is_no_path() {
        assert_eq!(named("pub(crate) fn f() {} pub(super) fn g() {}", "report"), [""; 0]);
    }

    #[test]
    fn a_byte_and_an_escape_in_quotes_end_where_they_end() {
        let source =
            r"const A: u8 = b'\''; const B: char = '\u{7b}'; const C: char = '\\'; use crate::model;";
        assert_eq!(named(source, "report"), ["model"]);
    }

    #[test]
    fn text_that_is_not_rust_does_no_harm() {
        for source in ["}}}} crate::", "crate::{", "\"", "'", "/*", "r#\"", "é ß crate::é", "mod x {"] {
            named(source, "report");
        }
    }
}
