//! A recording as text, for whoever debugs the format or a trace: `memtrace report --dump`.

use std::io::{self, Read, Write};

use tracer_common::event::{Asked, Header, ResidenceRecord, WindowRecord};
use tracer_common::frame::{self, NO_UNIT_YET, UNKNOWN_UNIT};
use tracer_common::probe::Function;
use tracer_common::record::Record;

use super::format::{EventBatch, Mappings, NamedPlace, NewTarget, RecordingHeader};
use super::read::{Reader, Section};
use crate::model::{CodeAddr, Frame, PythonCode, PythonText, RawCode};

/// Writes one line for each section, with the byte at which it starts, and one for each thing in it.
/// Times are in nanoseconds since the start of the trace. Strings are quoted and escaped, since they come
/// from the target and `out` may be a terminal.
///
/// # Errors
/// When `out` cannot be written. Damage of the recording is a line at the end.
pub fn dump<R: Read>(header: &RecordingHeader, mut reader: Reader<R>, out: &mut dyn Write) -> io::Result<()> {
    write_header(header, reader.section_byte(), out)?;
    let mut module_count = 0;
    while let Some(section) = reader.next_section() {
        let at = reader.section_byte();
        match section {
            Section::Modules(modules) => {
                writeln!(out, "@{at} modules {}", modules.len())?;
                for module in modules {
                    let build_id = module.build_id.as_deref().unwrap_or("-");
                    writeln!(out, "  module {module_count} {:?} build_id={build_id:?}", module.path)?;
                    module_count += 1;
                }
            }
            Section::Target(NewTarget { index, time_ns, target }) => {
                let time = since_start(header, time_ns);
                writeln!(out, "@{at} target {index} time={time} {target:?}")?;
            }
            Section::Mappings(mappings) => write_mappings(header, &mappings, at, out)?,
            Section::Events(batch) => write_events(header, &batch, at, out)?,
            Section::Names(names) => {
                writeln!(out, "@{at} names {}", names.len())?;
                names.iter().try_for_each(|named| write_named(named, out))?;
            }
            Section::Trailer(trailer) => {
                writeln!(out, "@{at} {trailer:?}")?;
            }
        }
    }
    let counts = reader.counts();
    writeln!(
        out,
        "sections {} (unknown {}), records {} (undecodable {})",
        counts.sections, counts.unknown_sections, counts.records, counts.undecodable_records
    )?;
    match reader.damage() {
        None => writeln!(out, "whole"),
        Some(damage) => writeln!(out, "damage: {damage}"),
    }
}

fn write_header(header: &RecordingHeader, at: u64, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "@{at} header memtrace={:?} started_unix_ms={} started_mono_ns={} {:?}",
        header.memtrace_version, header.started_unix_ms, header.started_mono_ns, header.settings
    )?;
    for (index, target) in header.targets.iter().enumerate() {
        writeln!(out, "  target {index} {target:?}")?;
    }
    Ok(())
}

fn write_mappings(
    header: &RecordingHeader,
    mappings: &Mappings,
    at: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    let time = since_start(header, mappings.time_ns);
    writeln!(out, "@{at} mappings {} target={} time={time}", mappings.mappings.len(), mappings.target)?;
    for mapping in &mappings.mappings {
        writeln!(
            out,
            "  {:#x}-{:#x} module={} file_offset={:#x}",
            mapping.start_addr, mapping.end_addr, mapping.module, mapping.file_offset
        )?;
    }
    Ok(())
}

fn write_events(
    header: &RecordingHeader,
    batch: &EventBatch,
    at: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "@{at} events {}", batch.raw_records().count())?;
    for raw in batch.raw_records() {
        match Record::decode(raw) {
            Ok(record) => write_record(header, &record, out)?,
            Err(error) => writeln!(out, "  undecodable: {error} ({} bytes)", raw.len())?,
        }
    }
    Ok(())
}

fn write_record(recording: &RecordingHeader, record: &Record<'_>, out: &mut dyn Write) -> io::Result<()> {
    let Header { function, target, tid, time_ns, .. } = *record.header();
    let time = since_start(recording, time_ns);
    let name = match record {
        Record::Allocate(_) => "allocate",
        Record::Release(_) => "release",
        Record::ReplaceBegin(_) => "replace-begin",
        Record::ReplaceEnd(_) => "replace-end",
        Record::Stack { .. } => "stack",
        Record::Code(_) => "code",
        Record::Exec(_) => "exec",
        Record::Fork(_) => "fork",
        Record::Doubt(_) => "doubt",
        Record::Content(_) => "content",
        Record::Window(_) => "window",
        Record::Sampled(_) => "sampled",
        Record::PageFault(_) => "page-fault",
        Record::Residence(_) => "residence",
    };
    write!(out, "  {time} {name} target={target} tid={tid}")?;
    match Function::from_number(function) {
        Some(function) => write!(out, " {}", function.symbol())?,
        None if function == 0 => {}
        None => write!(out, " function={function}")?,
    }
    match record {
        Record::Allocate(record) => {
            write!(out, " addr={:#x} size={} stack={:#x}", record.addr, record.size_bytes, record.stack)?
        }
        Record::Release(record) => write!(out, " addr={:#x}", record.addr)?,
        Record::ReplaceBegin(record) => {
            write!(out, " addr={:#x} length={}", record.addr, record.length_bytes)?;
        }
        Record::ReplaceEnd(record) => write!(
            out,
            " addr={:#x} size={} stack={:#x} released={:#x}",
            record.addr, record.size_bytes, record.stack, record.released_addr
        )?,
        Record::Stack { id, end, asked, frames, .. } => {
            write!(out, " id={id:#x} end={end:?}")?;
            if *asked != Asked::Unknown {
                write!(out, " asked={asked:?}")?;
            }
            frames.iter().try_for_each(|word| write_frame(word, out))?;
        }
        Record::Doubt(record) => write!(out, " addr={:#x}", record.addr)?,
        Record::Content(record) => write!(out, " addr={:#x} content={}", record.addr, record.content)?,
        Record::Window(record) => {
            write!(out, " weight={}", record.weight())?;
            if record.closed_ns != WindowRecord::OPEN {
                write!(out, " closed={}", since_start(recording, record.closed_ns))?;
            }
        }
        Record::Sampled(record) => write!(
            out,
            " addr={:#x} size={} stack={:#x} weight={}",
            record.addr, record.size_bytes, record.stack, record.weight_bytes
        )?,
        Record::PageFault(record) => {
            write!(out, " addr={:#x} stack={:#x} limit={:#x}", record.addr, record.stack, record.limit)?;
        }
        Record::Residence(ResidenceRecord { addr: ResidenceRecord::ALL, bytes: limit, .. }) => {
            write!(out, " all limit={limit:#x}")?;
        }
        Record::Residence(record) => write!(out, " addr={:#x} bytes={}", record.addr, record.bytes)?,
        Record::Code(code) => {
            write!(out, " addr={:#x} check={:#x}", code.header.code_addr, code.header.check)?;
            write_code(&PythonCode::new(&RawCode::from(*code)), out)?;
        }
        Record::Exec(_) | Record::Fork(_) => {}
    }
    writeln!(out)
}

fn write_frame(word: u64, out: &mut dyn Write) -> io::Result<()> {
    match frame::Frame::from_word(word) {
        frame::Frame::Return(addr) => write!(out, " {addr:#x}"),
        frame::Frame::Interrupted(addr) => write!(out, " interrupted:{addr:#x}"),
        frame::Frame::Python { code_addr, unit: UNKNOWN_UNIT } => write!(out, " python:{code_addr:#x}:?"),
        frame::Frame::Python { code_addr, unit: NO_UNIT_YET } => write!(out, " python:{code_addr:#x}:-"),
        frame::Frame::Python { code_addr, unit } => write!(out, " python:{code_addr:#x}:{unit}"),
    }
}

fn write_code(code: &PythonCode, out: &mut dyn Write) -> io::Result<()> {
    let text = |text: &PythonText| text.decode().map_or("?".to_owned(), |text| format!("{text:?}"));
    let (name, file) = (text(&code.name), text(&code.file));
    write!(out, " {name} {file}:{} python=3.{} table={}", code.first_line, code.minor, code.table.len())?;
    if code.has_whole_table { Ok(()) } else { write!(out, " (cut)") }
}

fn write_named(named: &NamedPlace, out: &mut dyn Write) -> io::Result<()> {
    match named.place {
        CodeAddr::InFile { module, offset } => write!(out, "  module={module} offset={offset:#x}")?,
        CodeAddr::Unmapped { addr } => write!(out, "  addr={addr:#x}")?,
        CodeAddr::Interrupted { module, offset } => {
            write!(out, "  interrupted module={module} offset={offset:#x}")?;
        }
        // Code objects stand in the events; none is written here.
        CodeAddr::Python { code, unit } => write!(out, "  code={code:?} unit={unit}")?,
    }
    for Frame { function, file, line, inlined, .. } in &named.frames {
        write!(out, " {:?}", function.as_deref().unwrap_or("?"))?;
        if let Some(file) = file {
            write!(out, " {file:?}")?;
        }
        if let Some(line) = line {
            write!(out, ":{line}")?;
        }
        if *inlined {
            write!(out, " inlined in")?;
        }
    }
    writeln!(out)
}

/// `time_ns` with a sign, since a record may be older than the start: the clock is read after attaching.
fn since_start(header: &RecordingHeader, time_ns: u64) -> String {
    match time_ns.checked_sub(header.started_mono_ns) {
        Some(after) => format!("+{after}"),
        None => format!("-{}", header.started_mono_ns - time_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{header, modules, names, small_recording, window};
    use super::super::write::Writer;
    use super::*;

    fn dumped(file: &[u8]) -> String {
        let (header, reader) = Reader::open(file).unwrap();
        let mut out = Vec::new();
        dump(&header, reader, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_dump_has_a_line_for_everything() {
        let text = dumped(&small_recording());
        for line in [
            "@16 header memtrace=\"0.1.0\"",
            "  target 0 Target { pid: 42,",
            "  module 2 \"/lib/late.so\" build_id=\"c0ffee\"",
            "  0x1000-0x2000 module=1 file_offset=0x100",
            "  +1 code target=0 tid=7 addr=0x7000 check=0x5 \"f\" \"/srv/\u{fffd}.py\":12 python=3.11 table=2",
            "  +1 stack target=0 tid=7 malloc id=0x9 end=Complete 0x1234 interrupted:0x1235 python:0x7000:3 \
             python:0x7008:?",
            "  +2 allocate target=0 tid=7 malloc addr=0xa000 size=64 stack=0x9",
            "  +3 replace-begin target=0 tid=7 malloc addr=0xa000 length=0",
            "  +4 replace-end target=0 tid=7 malloc addr=0xb000 size=128 stack=0x9 released=0xa000",
            "  +5 release target=0 tid=7 malloc addr=0xb000",
            "  +6 exec target=0 tid=7 malloc",
            "  +7 fork target=1 tid=7 malloc",
            "  +8 doubt target=1 tid=0 mmap addr=0x0",
            "  module=0 offset=0x334 \"main\" \"server.c\":12 inlined in \"main\" \"server.c\":12",
            "sections 12 (unknown 0), records 9 (undecodable 0)",
            "whole",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "no {line}\n{text}");
        }
        assert!(text.contains(" target 1 time=+6 Target { pid: 43,"), "{text}");
        // 12 sections, 1 target, 3 modules, 3 mappings, 9 records, 2 names, 2 lines at the end.
        assert_eq!(text.lines().count(), 32, "{text}");
    }

    #[test]
    fn a_dump_escapes_what_the_target_chose_and_ends_with_the_damage() {
        let mut file = Vec::new();
        let mut writer = Writer::create(&mut file, &header()).unwrap();
        writer.modules(&modules(&["/tmp/\x1b[2J\n"])).unwrap();
        writer.names(&names("\x1b[2J")).unwrap();
        writer.window(&window(2.5)).unwrap();
        writer.window(&WindowRecord { closed_ns: WindowRecord::OPEN, ..window(1.0) }).unwrap();
        writer.event(b"?").unwrap();
        writer.flush().unwrap();
        let text = dumped(&file);
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}[2J"), "{text}");
        assert!(text.contains("  +9 window target=1 tid=0 weight=2.5 closed=+19\n"), "{text}");
        assert!(text.contains("  +9 window target=1 tid=0 weight=1\n"), "{text}");
        assert!(text.contains("  undecodable: record is cut short (1 bytes)"), "{text}");
        assert!(text.lines().last().unwrap().starts_with("damage: "), "{text}");
    }
}
