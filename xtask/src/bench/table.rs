//! One table of the page: for each tool its measurements, or why there are none.

use super::attach::Report;
use super::samples::Samples;
use super::tools::Tool;

/// One measurement of one tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// What was measured, in the table's unit.
    pub value: f64,
    /// Events that the tool says it lost; `None` where it does not say.
    pub lost: Option<u64>,
    /// Frames of the stack that the tool saw most; `None` where it does not say.
    pub frames: Option<usize>,
}

impl Sample {
    /// A measurement with what the tool's report says.
    pub fn new(value: f64, report: Option<&Report>) -> Self {
        Self { value, lost: report.map(Report::lost), frames: report.and_then(Report::frames) }
    }
}

/// A tool's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The tool.
    pub tool: Tool,
    /// Its measurements.
    pub samples: Vec<Sample>,
    /// Why there is nothing (more) to measure.
    pub missing: Option<String>,
}

impl Row {
    /// The values; `None` when one is missing.
    pub fn values(&self) -> Option<Samples> {
        if self.missing.is_some() {
            return None;
        }
        Samples::new(self.samples.iter().map(|sample| sample.value).collect())
    }

    /// Events lost in all measurements; `None` where the tool does not say.
    pub fn lost(&self) -> Option<u64> {
        self.samples.iter().map(|sample| sample.lost).sum()
    }

    /// Frames of the stack that the tool saw most, in the first measurement.
    pub fn frames(&self) -> Option<usize> {
        self.samples.first()?.frames
    }
}

/// The rows of a table, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Vec<Row>);

impl Table {
    /// A row for each tool, with nothing measured yet.
    pub fn of(tools: impl IntoIterator<Item = Tool>) -> Self {
        Self(tools.into_iter().map(|tool| Row { tool, samples: Vec::new(), missing: None }).collect())
    }

    /// Measures each tool once more; those that failed before are left alone.
    pub fn measure(&mut self, mut once: impl FnMut(Tool) -> anyhow::Result<Sample>) {
        for row in self.0.iter_mut().filter(|row| row.missing.is_none()) {
            match once(row.tool) {
                Ok(sample) => row.samples.push(sample),
                Err(why) => row.missing = Some(format!("{why:#}")),
            }
        }
    }

    /// The row of a tool.
    pub fn row(&self, tool: Tool) -> Option<&Row> {
        self.0.iter().find(|row| row.tool == tool)
    }

    /// The median of a tool's values.
    pub fn median(&self, tool: Tool) -> Option<f64> {
        self.row(tool)?.values().map(|values| values.median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_is_not_tried_again_and_says_why() {
        let mut table = Table::of([Tool::Untraced, Tool::Heaptrack]);
        let mut tried = Vec::new();
        for value in [4.0, 8.0] {
            table.measure(|tool| {
                tried.push(tool);
                if tool == Tool::Heaptrack {
                    anyhow::bail!("not installed")
                }
                Ok(Sample { value, lost: None, frames: None })
            });
        }
        assert_eq!(tried, [Tool::Untraced, Tool::Heaptrack, Tool::Untraced]);
        assert_eq!(table.median(Tool::Untraced), Some(6.0));
        assert_eq!(table.median(Tool::Heaptrack), None);
        let heaptrack = table.row(Tool::Heaptrack).expect("a row");
        assert_eq!(heaptrack.missing.as_deref(), Some("not installed"));
        assert_eq!(table.row(Tool::Valgrind), None);
    }

    #[test]
    fn losses_add_up_where_they_are_known() {
        let sample = |lost| Sample { value: 1.0, lost, frames: Some(3) };
        let row = |samples| Row { tool: Tool::Memtrace, samples, missing: None };
        assert_eq!(row(vec![sample(Some(2)), sample(Some(3))]).lost(), Some(5));
        assert_eq!(row(vec![sample(Some(2)), sample(None)]).lost(), None);
        assert_eq!(row(vec![sample(None)]).frames(), Some(3));
    }
}
