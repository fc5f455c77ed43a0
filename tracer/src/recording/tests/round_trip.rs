//! What is written is read again, and what the writer does when it cannot write.

use std::io::{self, Write};

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_written_is_read_in_the_same_order() {
    let read = read(&small_recording()[..]).unwrap();
    assert_eq!(read.header, header());
    let count = |section: &Section| match section {
        Section::Events(batch) => batch.records().count(),
        _ => 0,
    };
    assert_eq!(read.sections.iter().map(count).collect::<Vec<_>>(), [0, 2, 0, 3, 0, 2, 0, 0, 2, 0, 0]);
    let mut others = read.sections.clone();
    others.retain(|section| count(section) == 0);
    let mappings = Mappings { target: 0, time_ns: 1_001, mappings: vec![mapping(0), mapping(1)] };
    let expected = [
        Section::Modules(modules(&["/srv/server", "/lib/libc.so.6"])),
        Section::Mappings(mappings),
        Section::Modules(modules(&["/lib/late.so"])),
        Section::Target(NewTarget { index: 1, time_ns: 1_006, target: child() }),
        Section::Mappings(Mappings { target: 1, time_ns: 1_007, mappings: vec![mapping(2)] }),
        Section::Names(names("main")),
        Section::Trailer(trailer()),
    ];
    assert_eq!(others, expected);
    assert_eq!(read.raw_records(), records());
    assert_eq!(read.damage, None);
    assert_eq!(read.notes, [""; 0]);
    assert_eq!(read.last_time_ns, Some(1_008));
    let counts = Counts { sections: 12, records: 9, ..Counts::default() };
    assert_eq!(read.counts, counts);
}

#[test]
fn a_kill_loses_what_was_not_flushed() {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    records()[..3].iter().for_each(|raw| writer.event(raw).unwrap());
    writer.flush().unwrap();
    writer.event(&records()[3]).unwrap();
    drop(writer);
    let read = read(&file[..]).unwrap();
    assert_eq!(read.raw_records(), records()[..3]);
    assert_eq!(read.damage, Some(Damage::NoTrailer { at_byte: file.len() as u64 }));
    assert_eq!(read.last_time_ns, Some(1_002));
}

#[test]
fn full_batches_go_out_by_themselves() {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    let allocate = &records()[2];
    let per_batch = EVENT_BATCH_BYTES.div_ceil(allocate.len() + 2);
    (0..2 * per_batch + 1).for_each(|_| writer.event(allocate).unwrap());
    drop(writer);
    let read = read(&file[..]).unwrap();
    assert_eq!(read.sections.len(), 2);
    assert_eq!(read.counts.records, 2 * per_batch as u64);
    assert!(file.len() < EVENT_BATCH_BYTES / 10, "not compressed: {}", file.len());
}

#[test]
fn long_lists_take_several_sections() {
    let long = "x".repeat(1000);
    let given = modules(&vec![long.as_str(); 3000]);
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    writer.modules(&given).unwrap();
    writer.modules(&[]).unwrap();
    writer.mappings(0, 0, &[mapping(2999)]).unwrap();
    drop(writer);
    let mut read = read(&file[..]).unwrap().sections;
    assert!(matches!(read.pop(), Some(Section::Mappings(_))));
    assert_eq!(read.len(), 3);
    let all = read.into_iter().flat_map(|section| match section {
        Section::Modules(modules) => modules,
        other => panic!("{other:?}"),
    });
    assert!(all.eq(given));
}

#[test]
fn what_the_format_cannot_hold_is_refused_and_the_recording_goes_on() {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    let refused = [
        writer.event(&vec![0; MAX_RECORD_BYTES + 1]),
        writer.modules(&modules(&[&"x".repeat(MAX_SECTION_BYTES)])),
        writer.mappings(0, 0, &[mapping(0)]),
        writer.mappings(1, 0, &[]),
        writer.target(0, &child(), 0),
        writer.target(2, &child(), 0),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    writer.event(&vec![0; MAX_RECORD_BYTES]).unwrap();
    writer.target(1, &child(), 0).unwrap();
    writer.finish(&trailer()).unwrap();
    let read = read(&file[..]).unwrap();
    assert_eq!((read.sections.len(), read.damage), (3, None));
}

#[test]
fn windows_come_back_and_one_without_a_weight_ends_the_reading() {
    let recorded = |weights: &[f64]| {
        let mut file = Vec::new();
        let mut writer = Writer::create(&mut file, &header()).unwrap();
        for weight in weights {
            let mut raw = [[11, 0, 1, 0, 0, 0, 0, 0], 1_009_u64.to_le_bytes()].concat();
            raw.extend([1_019_u64.to_le_bytes(), weight.to_bits().to_le_bytes()].concat());
            // The writer takes it as a record too, and says so where its weight is none.
            match writer.window(&window(*weight)) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                    writer.event(&raw).unwrap();
                }
            }
            writer.flush().unwrap();
        }
        writer.finish(&trailer()).unwrap();
        read(&file[..]).unwrap()
    };
    let whole = recorded(&[47.5, 1.0]);
    assert_eq!((&whole.damage, whole.counts.records, whole.last_time_ns), (&None, 2, Some(1_009)));
    let found = whole.sections.iter().flat_map(|section| match section {
        Section::Events(batch) => batch.records().collect(),
        _ => vec![],
    });
    let expected = [47.5, 1.0].map(|weight| tracer_common::record::Record::Window(window(weight)));
    assert_eq!(found.collect::<Vec<_>>(), expected);
    for weight in [f64::NAN, f64::INFINITY, 0.5, -1.0] {
        let damaged = recorded(&[2.0, weight, 3.0]);
        assert_eq!((damaged.sections.len(), damaged.counts.sections), (1, 2), "{weight}");
        assert!(
            matches!(&damaged.damage, Some(Damage::BadContent { cause, .. }) if cause.contains("weight")),
            "{:?}",
            damaged.damage
        );
    }
}

/// A disk with room for so many bytes, on which room is made later.
struct Disk {
    file: Vec<u8>,
    room: usize,
}

impl Write for &mut Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            self.room = usize::MAX;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = bytes.len().min(self.room);
        self.room -= written;
        self.file.extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let mut disk = Disk { file: Vec::new(), room: with_section(b"").len() + 30 };
    let mut writer = Writer::create(&mut disk, &header()).unwrap();
    writer.event(&records()[0]).unwrap();
    assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(writer.event(&records()[1]).is_err());
    assert!(writer.names(&names("main")).is_err());
    assert!(writer.finish(&trailer()).is_err());
    let read = read(&disk.file[..]).unwrap();
    assert_eq!(read.sections, []);
    assert!(matches!(read.damage, Some(Damage::Truncated { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_records_come_back_as_they_were(
        given in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..2000), prop::bool::weighted(0.1)), 0..200),
    ) {
        // A window that cannot be read ends the reading.
        let given = given.into_iter().filter(|(raw, _)| raw.first() != Some(&(Kind::Window as u8)));
        let given: Vec<_> = given.collect();
        let mut file = Vec::new();
        let mut writer = Writer::create(&mut file, &header()).unwrap();
        for (raw, then_flush) in &given {
            writer.event(raw).unwrap();
            if *then_flush {
                writer.flush().unwrap();
            }
        }
        writer.finish(&trailer()).unwrap();
        let read = read(&file[..]).unwrap();
        prop_assert!(read.raw_records().iter().eq(given.iter().map(|(raw, _)| raw)));
        prop_assert_eq!(read.damage, None);
        prop_assert_eq!(read.sections.last(), Some(&Section::Trailer(trailer())));
    }
}
