//! Files that no writer finished, or made: read as far as they are whole, and never a panic.

use std::io::{self, Cursor};

use proptest::prelude::*;

use tracer_common::event::Kind;

use super::super::format::{PROLOGUE_BYTES, encoding};
use super::*;

#[test]
fn cut_anywhere_a_recording_gives_its_whole_sections_and_says_so() {
    let file = small_recording();
    let whole = read(&file[..]).unwrap();
    let header_end = whole.starts[0] as usize;
    // Where each section ends: where the next one starts.
    let ends: Vec<usize> = whole.starts[1..].iter().map(|start| *start as usize).collect();
    for cut in 0..file.len() {
        let read = read(&file[..cut]);
        if cut < header_end {
            assert!(
                matches!(
                    read,
                    Err(RecordingError::Empty | RecordingError::DamagedHeader(Damage::Truncated { .. }))
                ),
                "cut at {cut}: {read:?}"
            );
            continue;
        }
        let read = read.unwrap();
        let whole_sections = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(read.sections, whole.sections[..whole_sections], "cut at {cut}");
        let at_byte = whole.starts[whole_sections];
        let damage =
            if at_byte == cut as u64 { Damage::NoTrailer { at_byte } } else { Damage::Truncated { at_byte } };
        assert_eq!(read.notes, [damage.to_string()]);
        assert_eq!(read.damage, Some(damage), "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_is_noticed_and_nothing_wrong_is_read() {
    let mut file = small_recording();
    let whole = read(&file[..]).unwrap();
    for bit in 0..file.len() * 8 {
        file[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = read(&file[..]) {
            let damage = read.damage.unwrap_or_else(|| panic!("bit {bit} went unnoticed"));
            assert!(damage.at_byte() <= bit as u64 / 8, "bit {bit}: {damage}");
            assert_eq!(read.sections, whole.sections[..read.sections.len()], "bit {bit}");
            assert!(read.sections.len() < whole.sections.len(), "bit {bit}");
        }
        file[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn what_is_no_recording_is_told_from_what_is_damaged_or_newer() {
    assert!(matches!(read(io::empty()), Err(RecordingError::Empty)));
    for file in [&b"\x7fELF\x02\x01\x01"[..], b"memory", b"memtrace: tracing 42 (server)\n"] {
        assert!(matches!(read(file), Err(RecordingError::NotARecording)), "{file:?}");
    }
    let mut file = small_recording();
    file[8] = 0;
    assert!(matches!(read(&file[..]), Err(RecordingError::NotARecording)));
    file[8] = VERSION as u8 + 1;
    let error = read(&file[..]).unwrap_err();
    assert!(matches!(error, RecordingError::NewerVersion { found } if found == VERSION + 1));
    assert!(error.to_string().contains("newer memtrace"), "{error}");
    let mut file = small_recording();
    file[PROLOGUE_BYTES + 20] ^= 1;
    let error = read(&file[..]).unwrap_err();
    let RecordingError::DamagedHeader(Damage::BadChecksum { at_byte: 16 }) = error else {
        panic!("{error}");
    };
}

#[test]
fn recordings_of_every_earlier_version_are_read() {
    // Before version 3 a stack had no word for its code objects.
    let old_stack = record(Kind::Stack, &[1_001, 9, 2, 0x1234, 0x1235]);
    let new_stack = record(Kind::Stack, &[1_001, 9, 2, 0, 0x1234, 0x1235]);
    for version in OLDEST_VERSION..=VERSION {
        let mut file = Vec::new();
        let mut writer = Writer::create(&mut file, &header()).unwrap();
        let stack = if version < 3 { &old_stack } else { &new_stack };
        [stack, &records()[2]].into_iter().for_each(|raw| writer.event(raw).unwrap());
        writer.finish(&trailer()).unwrap();
        let file = as_version(&file, version);
        assert_eq!(Reader::open(&file[..]).unwrap().1.version(), version);
        let read = read(&file[..]).unwrap();
        assert_eq!(read.damage, None, "{version}");
        assert_eq!(read.raw_records(), [new_stack.clone(), records()[2].clone()], "{version}");
    }
}

#[test]
fn a_recording_whose_version_was_changed_is_damaged() {
    let mut file = small_recording();
    for version in OLDEST_VERSION..VERSION {
        file[8..12].copy_from_slice(&version.to_le_bytes());
        let error = read(&file[..]).unwrap_err();
        assert!(matches!(error, RecordingError::DamagedHeader(Damage::BadContent { .. })), "{error}");
    }
    let mut old = as_version(&small_recording(), 2);
    old[8] = 3;
    assert!(matches!(read(&old[..]), Err(RecordingError::DamagedHeader(_))));
}

#[test]
fn zeros_behind_the_last_section_are_no_sections() {
    // What a file system may leave of the last blocks after a power failure.
    let file = with_section(&[0; 4096]);
    let read = read(&file[..]).unwrap();
    assert!(matches!(read.damage, Some(Damage::BadChecksum { .. })), "{:?}", read.damage);
}

#[test]
fn unknown_sections_are_skipped_and_counted() {
    let mut file = small_recording();
    let start = read(&file[..]).unwrap().starts[2] as usize;
    file.splice(start..start, forge(200, 99, 5, b"from later"));
    let read = read(&file[..]).unwrap();
    assert_eq!(read.damage, None);
    assert_eq!(read.raw_records(), records());
    assert_eq!((read.counts.sections, read.counts.unknown_sections), (13, 1));
    assert_eq!(read.notes.len(), 1);
}

#[test]
fn sections_that_make_no_sense_end_the_reading() {
    let plain =
        |kind: SectionKind, content: &[u8]| forge(kind as u8, encoding::PLAIN, content.len() as u32, content);
    let bomb = lz4_flex::block::compress(&[0; 1 << 16]);
    let mapped = br#"{"target":0,"time_ns":0,"mappings":
        [{"start_addr":0,"end_addr":1,"file_offset":0,"module":0}]}"#;
    let unknown = br#"{"target":1,"time_ns":0,"mappings":[]}"#;
    let target_at = |index| serde_json::to_vec(&NewTarget { index, time_ns: 0, target: child() }).unwrap();
    let cases = [
        (plain(SectionKind::Header, &serde_json::to_vec(&header()).unwrap()), "a second header"),
        (plain(SectionKind::Modules, b"[{}]"), "missing field"),
        (plain(SectionKind::Names, &b"[".repeat(10_000)), "line 1"),
        (plain(SectionKind::Trailer, b"\xff"), "expected value"),
        (plain(SectionKind::Mappings, mapped), "no module has number 0"),
        (plain(SectionKind::Mappings, unknown), "no target has number 1"),
        (plain(SectionKind::Target, &target_at(0)), "target 0 where 1 was next"),
        (plain(SectionKind::Target, &target_at(2)), "target 2 where 1 was next"),
        (plain(SectionKind::Target, b"{}"), "missing field"),
        (plain(SectionKind::Events, &[4, 0, 1, 2, 3]), "reaches past its end"),
        (forge(SectionKind::Events as u8, encoding::PLAIN, 7, b"\0\0"), "lengths disagree"),
        (forge(SectionKind::Events as u8, 2, 2, b"\0\0"), "unknown encoding 2"),
        (forge(SectionKind::Events as u8, encoding::LZ4, 100, &bomb), "too small"),
        (forge(SectionKind::Events as u8, encoding::LZ4, 1 << 17, &bomb), "65536 bytes where"),
        (forge(SectionKind::Events as u8, encoding::LZ4, 9, b"\xff\xff"), "byte"),
    ];
    for (section, expected) in cases {
        let read = read(&with_section(&section)[..]).unwrap();
        assert_eq!(read.sections, [], "{expected}");
        match read.damage {
            Some(Damage::BadContent { cause, .. }) if cause.contains(expected) => {}
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn undecodable_records_are_counted_and_the_others_stay() {
    let mut file = Vec::new();
    let mut writer = Writer::create(&mut file, &header()).unwrap();
    let given = [records()[2].clone(), vec![99; 16], vec![], records()[5].clone()];
    given.iter().for_each(|raw| writer.event(raw).unwrap());
    writer.finish(&trailer()).unwrap();
    let read = read(&file[..]).unwrap();
    assert_eq!((read.counts.records, read.counts.undecodable_records), (4, 2));
    assert_eq!(read.raw_records(), given);
    assert!(matches!(&read.sections[0], Section::Events(batch) if batch.records().count() == 2));
    assert_eq!(read.damage, None);
    assert_eq!(read.notes.len(), 1);
}

#[test]
fn bytes_behind_the_trailer_are_left_out() {
    let mut file = small_recording();
    let at_byte = file.len() as u64;
    file.extend(small_recording());
    let read = read(&file[..]).unwrap();
    assert_eq!(read.raw_records(), records());
    assert_eq!(read.damage, Some(Damage::DataAfterTrailer { at_byte }));
}

#[test]
fn an_input_that_fails_is_read_up_to_there() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("bad disk"))
        }
    }
    assert!(matches!(read(Failing), Err(RecordingError::Unreadable(_))));
    let file = small_recording();
    let starts = read(&file[..]).unwrap().starts;
    let read = read(Cursor::new(&file[..starts[3] as usize + 5]).chain(Failing)).unwrap();
    assert_eq!(read.sections.len(), 3);
    let cause = "bad disk".to_owned();
    assert_eq!(read.damage, Some(Damage::Unreadable { at_byte: starts[3], cause }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_bytes_are_read_without_a_panic(
        kind in 0u8..10,
        encoding in 0u8..3,
        content_bytes in 0u32..5000,
        payload in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        let mut section = forge(kind, encoding, content_bytes, &payload);
        let read_forged = read(&with_section(&section)[..]).unwrap();
        prop_assert!(read_forged.damage.is_some());
        // And without the checksum that lets the bytes in.
        section[12] ^= 1;
        prop_assert_eq!(read(&with_section(&section)[..]).unwrap().sections, vec![]);
        prop_assert!(read(&payload[..]).is_err());
    }
}
