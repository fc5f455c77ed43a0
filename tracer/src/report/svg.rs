//! A flame graph of the outstanding bytes, drawn by inferno: one file, searchable, that opens in a browser.

use std::io::Write;

use inferno::flamegraph::color::{BasicPalette, Color, Palette, PaletteMap};
use inferno::flamegraph::{self, TextTruncateDirection};

use super::label::{command_line, shorten_end};
use super::{Format, Options, Render, RenderError, folded, loss, units, write_error};
use crate::model::{FrameKind, Mode, Report};

/// Width of the picture where no script runs, pixels (inferno 0.12's default); in a browser it takes the
/// window's, which also measures the font and cuts names to fit.
const WIDTH_PX: usize = 1200;

/// Characters of the title and the subtitle that fit into [`WIDTH_PX`] in inferno's monospace fonts of
/// 17 and 12 pixels; the title has the search button beside it.
const TITLE_COLUMNS: usize = 96;
const SUBTITLE_COLUMNS: usize = 160;

/// Renders a flame graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Svg;

impl Render for Svg {
    fn render(&self, report: &Report, options: &Options, out: &mut dyn Write) -> Result<(), RenderError> {
        let stacks = folded::fold(report, options);
        let picture = if stacks.is_empty() {
            nothing(report).into_bytes()
        } else {
            // inferno adds the bytes up: no sum may overflow, whatever a damaged recording says.
            let most = u64::MAX / 2 / stacks.len() as u64;
            let lines: Vec<String> =
                stacks.into_iter().map(|(stack, bytes)| format!("{stack} {}", bytes.min(most))).collect();
            draw(report, &lines)?
        };
        out.write_all(&picture).map_err(write_error(Format::Svg))
    }
}

/// The flame graph of folded `lines`.
fn draw(report: &Report, lines: &[String]) -> Result<Vec<u8>, RenderError> {
    let mut options = flamegraph::Options::default();
    options.title = title(report);
    options.subtitle = Some(subtitle(report));
    options.count_name = "bytes".to_owned();
    options.colors = Palette::Basic(BasicPalette::Mem);
    options.deterministic = true;
    let mut colors = colors(report);
    options.palette_map = Some(&mut colors);
    options.text_truncate_direction = TextTruncateDirection::Right;
    let mut picture = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut picture)
        .map_err(RenderError::Draw)?;
    picture.push(b'\n');
    Ok(picture)
}

/// Where there are Python functions, native code has another colour than they.
fn colors(report: &Report) -> PaletteMap {
    let mut colors = PaletteMap::default();
    let frames = || report.stacks.iter().flat_map(|row| &row.frames);
    if frames().any(|frame| frame.kind == FrameKind::Python) {
        for frame in frames().filter(|frame| frame.kind != FrameKind::Python) {
            let name = folded::element(frame);
            colors.insert(&name, orange(&name));
        }
    }
    colors
}

/// A shade of orange, always the same for a name.
fn orange(name: &str) -> Color {
    let shade = name.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)) % 64;
    Color { r: 190 + shade, g: 90 + shade, b: 0 }
}

/// `Outstanding bytes: <command> (pid N)`.
fn title(report: &Report) -> String {
    let what = match report.mode {
        Mode::Exact => "Outstanding bytes",
        Mode::Sampled => "Outstanding bytes, sampled",
    };
    let Some(first) = report.targets.first() else {
        return what.to_owned();
    };
    let process = match report.targets.len() - 1 {
        0 => format!(" (pid {})", first.pid),
        others => format!(" (pid {} and {} more)", first.pid, units::count(others as u64)),
    };
    let start = format!("{what}: ");
    let room = TITLE_COLUMNS - start.len() - process.len();
    format!("{start}{}{process}", shorten_end(&command_line(first), room))
}

/// The window, the totals and the loss in one line.
fn subtitle(report: &Report) -> String {
    let estimated = match report.mode {
        Mode::Exact => "",
        Mode::Sampled => " (estimated)",
    };
    let line = format!(
        "{} from {} | {} in {} outstanding{estimated} | lost: {}",
        units::span(report.duration_ms),
        units::moment(report.started_unix_ms),
        units::size(report.totals.outstanding_bytes),
        units::counted(report.totals.outstanding_count, "block"),
        loss::summary(&report.loss),
    );
    shorten_end(&line, SUBTITLE_COLUMNS).into_owned()
}

/// A picture that says that there is nothing to draw. inferno takes that for an error.
fn nothing(report: &Report) -> String {
    let middle = WIDTH_PX / 2;
    let message = if report.totals.outstanding_count > 0 {
        "The outstanding blocks have no bytes."
    } else {
        "Nothing is outstanding."
    };
    format!(
        r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="{WIDTH_PX}" height="120" viewBox="0 0 {WIDTH_PX} 120" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100%" fill="#eeeeee"/>
<g font-family="monospace" text-anchor="middle" fill="#000000">
<text x="{middle}" y="30" font-size="17">{}</text>
<text x="{middle}" y="54" font-size="12" fill="#555555">{}</text>
<text x="{middle}" y="90" font-size="14">{message}</text>
</g>
</svg>
"##,
        escape(&title(report)),
        escape(&subtitle(report)),
    )
}

/// `text` as XML character data.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{frame, python, report, row};
    use super::*;

    fn svg(report: &Report) -> String {
        let mut out = Vec::new();
        Svg.render(report, &Options::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn hostile(rows: Vec<crate::model::StackRow>) -> Report {
        let mut report = report(rows);
        report.targets[0].command = vec!["<a>&\x1b".to_owned()];
        report
    }

    #[test]
    fn names_are_escaped_with_and_without_frames() {
        let drawn = svg(&hostile(vec![row(5, &[frame("f<int>&\x07")])]));
        let empty = svg(&hostile(Vec::new()));
        for picture in [&drawn, &empty] {
            assert!(picture.contains("Outstanding bytes: &lt;a&gt;&amp;\u{fffd} (pid 1)"), "{picture}");
            assert!(!picture.contains("<a>") && !picture.contains('\x1b'));
        }
        assert!(drawn.contains("f&lt;int&gt;&amp;\u{fffd} (5 bytes, 100.00%)"));
        assert!(empty.contains("Nothing is outstanding."));
    }

    #[test]
    fn the_same_report_gives_the_same_bytes() {
        let report = report(vec![row(5, &[frame("f")]), row(7, &[frame("g")])]);
        assert_eq!(svg(&report), svg(&report));
    }

    #[test]
    fn native_code_has_a_colour_of_its_own_beside_python() {
        let fill = |picture: &str, name: &str| {
            let title = format!("<title>{name} (5 bytes, 100.00%)</title>");
            let rest = picture.split_once(&title).unwrap_or_else(|| panic!("{title}: {picture}")).1;
            rest.split_once("fill=\"").unwrap().1.split_once('"').unwrap().0.to_owned()
        };
        let mixed = svg(&report(vec![row(5, &[frame("f"), python("g")])]));
        let native = svg(&report(vec![row(5, &[frame("f"), frame("g")])]));
        assert!(fill(&mixed, "f").ends_with(",0)"), "{}", fill(&mixed, "f"));
        assert_ne!(fill(&mixed, "f"), fill(&native, "f"));
        let in_python = fill(&mixed, "g (/srv/app.py:7)");
        assert!(in_python.starts_with("rgb(0,"), "{in_python}");
        assert!(fill(&native, "f").starts_with("rgb(0,"), "{native}");
    }

    #[test]
    fn more_processes_are_counted_in_the_title_and_a_long_command_is_cut() {
        let mut report = report(vec![row(5, &[frame("f")])]);
        report.targets.push(report.targets[0].clone());
        report.targets[0].command = vec!["x".repeat(500)];
        let title = title(&report);
        assert!(title.ends_with("xxx... (pid 1 and 1 more)"), "{title}");
        assert_eq!(title.len(), TITLE_COLUMNS);
        report.mode = Mode::Sampled;
        let title = super::title(&report);
        assert!(title.starts_with("Outstanding bytes, sampled: xxx"), "{title}");
        assert_eq!(title.len(), TITLE_COLUMNS);
        report.targets.clear();
        assert_eq!(super::title(&report), "Outstanding bytes, sampled");
        report.mode = Mode::Exact;
        assert_eq!(super::title(&report), "Outstanding bytes");
    }

    #[test]
    fn absurd_figures_do_not_overflow() {
        let rows = vec![row(u64::MAX, &[frame("f")]), row(u64::MAX, &[frame("g")])];
        assert!(svg(&report(rows)).contains("50.00%"));
    }

    #[test]
    fn blocks_without_bytes_are_not_called_nothing() {
        assert!(svg(&report(vec![row(0, &[frame("f")])])).contains("have no bytes"));
    }
}
