//! A page of text of a given width: paragraphs that break between words and hang under their label.

/// Narrowest page that is kept to.
const MIN_WIDTH: usize = 40;

/// Columns that `text` takes, counted as characters.
pub(super) fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Lines of text under construction.
#[derive(Debug)]
pub(super) struct Page {
    width: usize,
    text: String,
}

impl Page {
    /// An empty page, `width` columns wide.
    pub(super) fn new(width: usize) -> Self {
        Self { width: width.max(MIN_WIDTH), text: String::new() }
    }

    /// Columns of a line.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// What was written.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// An empty line, unless there is one already.
    pub(super) fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// One line that the caller has made to fit; spaces at its end are dropped.
    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// `text` after `label`, broken between words; later lines start in column `hang`.
    pub(super) fn paragraph(&mut self, label: &str, hang: usize, text: &str) {
        self.pieces(label, hang, text.split_whitespace());
    }

    /// As [`Self::paragraph`], broken between `pieces` that may have spaces in them.
    pub(super) fn pieces<'a>(&mut self, label: &str, hang: usize, pieces: impl IntoIterator<Item = &'a str>) {
        let mut line = format!("{label:<hang$}");
        let mut empty = true;
        for word in pieces {
            let mut word = word;
            let needed = columns(&line) + usize::from(!empty) + columns(word);
            if !empty && needed > self.width {
                self.line(&line);
                line = " ".repeat(hang);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            // A piece wider than the page (a path) is broken anywhere, rather than left to the terminal.
            loop {
                let room = self.width.saturating_sub(columns(&line)).max(1);
                let Some((end, _)) = word.char_indices().nth(room) else {
                    break;
                };
                line.push_str(&word[..end]);
                self.line(&line);
                line = " ".repeat(hang);
                word = &word[end..];
            }
            line.push_str(word);
            empty = false;
        }
        self.line(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paragraph(width: usize, label: &str, hang: usize, text: &str) -> String {
        let mut page = Page::new(width);
        page.paragraph(label, hang, text);
        page.into_text()
    }

    #[test]
    fn words_break_at_the_width_and_hang() {
        let text = "one two three four five six seven eight nine ten";
        assert_eq!(
            paragraph(40, "note: ", 6, text),
            "note: one two three four five six seven\n      eight nine ten\n"
        );
    }

    #[test]
    fn a_word_wider_than_the_page_is_broken_not_lost() {
        let word = "x".repeat(100);
        let text = paragraph(40, "", 4, &format!("a {word} b"));
        assert!(text.lines().all(|line| columns(line) <= 40), "{text}");
        assert_eq!(text.matches('x').count(), 100);
        assert!(text.ends_with("b\n"));
    }

    #[test]
    fn a_piece_is_not_broken_at_its_spaces() {
        let mut page = Page::new(40);
        page.pieces("", 2, ["2,304 allocated (51.0 MiB),", "1,536 freed (36.0 MiB)"]);
        assert_eq!(page.into_text(), "  2,304 allocated (51.0 MiB),\n  1,536 freed (36.0 MiB)\n");
    }

    #[test]
    fn gaps_do_not_add_up() {
        let mut page = Page::new(80);
        page.gap();
        page.line("a  ");
        page.gap();
        page.gap();
        page.line("b");
        assert_eq!(page.into_text(), "a\n\nb\n");
    }
}
