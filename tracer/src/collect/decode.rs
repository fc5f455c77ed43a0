//! Raw records to events. Total: what is no record is counted.

use tracer_common::record::Record;

use crate::model::{Event, RawStack};

/// Decodes records and counts those that are none.
#[derive(Debug, Default)]
pub struct Decoder {
    undecodable: u64,
}

impl Decoder {
    /// The event in `record`, or `None`, counted.
    pub fn decode(&mut self, record: &[u8]) -> Option<Event> {
        match Record::decode(record) {
            Ok(record) => Some(event(record)),
            Err(error) => {
                log::debug!("record dropped: {error}");
                self.undecodable += 1;
                None
            }
        }
    }

    /// Records that could not be decoded.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }
}

fn event(record: Record<'_>) -> Event {
    match record {
        Record::Allocate(record) => Event::Allocate(record),
        Record::Release(record) => Event::Release(record),
        Record::ReplaceBegin(record) => Event::ReplaceBegin(record),
        Record::ReplaceEnd(record) => Event::ReplaceEnd(record),
        Record::Stack { header, id, end, asked, frames } => {
            Event::Stack(RawStack { header, id, end, asked, words: frames.iter().collect() })
        }
        Record::Code(code) => Event::Code(code.into()),
        Record::Exec(header) => Event::Exec(header),
        Record::Fork(header) => Event::Fork(header),
        Record::Doubt(record) => Event::Doubt(record),
        Record::Content(record) => Event::Content(record),
        Record::Window(record) => Event::Window(record),
        Record::Sampled(record) => Event::Sampled(record),
        Record::PageFault(record) => Event::PageFault(record),
        Record::Residence(record) => Event::Residence(record),
    }
}

impl Event {
    /// When it happened, `CLOCK_MONOTONIC` nanoseconds.
    pub fn time_ns(&self) -> u64 {
        self.header().time_ns
    }

    /// The part that all events share.
    pub fn header(&self) -> &tracer_common::event::Header {
        match self {
            Self::Allocate(record) => &record.header,
            Self::Release(record) => &record.header,
            Self::ReplaceBegin(record) => &record.header,
            Self::ReplaceEnd(record) => &record.header,
            Self::Stack(stack) => &stack.header,
            Self::Code(code) => &code.header.header,
            Self::Doubt(record) => &record.header,
            Self::Content(record) => &record.header,
            Self::Window(record) => &record.header,
            Self::Sampled(record) => &record.header,
            Self::PageFault(record) => &record.header,
            Self::Residence(record) => &record.header,
            Self::Exec(header) | Self::Fork(header) => header,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_counted() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"short"), None);
        assert_eq!(decoder.decode(&[77; 64]), None);
        assert_eq!(decoder.undecodable(), 2);
    }
}
