//! Calls that fail, null, zero, and what allocators do inside: `targets/edge.c`.

use memtrace_tests::harness::report::Totals;
use memtrace_tests::harness::{Frames, Language, Memtrace, Row, Target, as_root, program};

const MIB: u64 = 1 << 20;

/// How many, and how many bytes.
type Amount = (u64, u64);

/// What a function of the plan allocates, and what of that is freed.
const PLAN: [(&str, Amount, Amount); 20] = [
    ("failed_realloc", (1, 5000), (0, 0)),
    ("reallocarray_overflow", (1, 7000), (0, 0)),
    ("calloc_overflow", (0, 0), (0, 0)),
    ("malloc_too_much", (0, 0), (0, 0)),
    ("malloc_without_memory", (0, 0), (0, 0)),
    ("free_null", (0, 0), (0, 0)),
    ("realloc_to_zero", (1, 4000), (1, 4000)),
    ("realloc_of_null", (1, 6000), (0, 0)),
    ("posix_memalign_bad_alignment", (0, 0), (0, 0)),
    ("aligned_too_much", (0, 0), (0, 0)),
    ("realloc_without_memory", (1, 100_000), (0, 0)),
    ("malloc_of_zero", (1, 0), (0, 0)),
    ("realloc_shrinks", (2, 3000), (1, 2000)),
    ("big_blocks", (2, 2 * MIB), (1, MIB)),
    ("realloc_of_big_block", (2, 5 * MIB), (1, MIB)),
    ("reused_address", (100, 5000), (100, 5000)),
    ("free_from_before", (1, 300), (0, 0)),
    ("failed_mmap", (0, 0), (0, 0)),
    ("failed_munmap", (1, 12_288), (0, 0)),
    ("failed_mremap", (1, 16_384), (0, 0)),
];

#[test]
fn hard_cases_are_counted_exactly() {
    let _root = as_root();
    let mut target = Target::start(&program("edge", Language::C, Frames::Omitted), &[]);
    let session = Memtrace::new(["-p", &target.pid().to_string(), "--format", "json"]).trace();
    target.go();
    let report = session.stop().report();
    target.quit();

    report.expect_nothing_lost();
    let mut expected = Totals::default();
    for (function, (alloc_count, alloc_bytes), (free_count, free_bytes)) in PLAN {
        let part = Totals {
            alloc_count,
            alloc_bytes,
            free_count,
            free_bytes,
            outstanding_count: alloc_count - free_count,
            outstanding_bytes: alloc_bytes - free_bytes,
            unmatched_free_count: 0,
        };
        assert_eq!(report.totals_of(function), part, "{function}");
        assert_eq!(report.rows_with(function).count() > 0, alloc_count > 0, "rows of {function}");
        expected.alloc_count += part.alloc_count;
        expected.alloc_bytes += part.alloc_bytes;
        expected.free_count += part.free_count;
        expected.free_bytes += part.free_bytes;
        expected.outstanding_count += part.outstanding_count;
        expected.outstanding_bytes += part.outstanding_bytes;
    }
    // Two frees and a realloc of blocks from before the trace.
    expected.unmatched_free_count = 3;
    assert_eq!(report.totals, expected, "{}", report.outstanding());

    // A failed realloc leaves the block with the stack of its malloc: the call in the line before.
    let row = report.rows_with("failed_realloc").next().unwrap();
    let source = std::fs::read_to_string(memtrace_tests::harness::source_path("edge.c")).unwrap();
    let line = source.lines().position(|line| line.contains("malloc(hidden(5000))")).unwrap() + 1;
    assert_eq!(row.frames[0].line, u32::try_from(line).ok(), "{:?}", row.frames[0]);

    // What malloc maps for itself is no mapping of the program.
    let own = |row: &Row| row.has("failed_munmap") || row.has("failed_mremap");
    for row in &report.stacks {
        assert_eq!(row.domain == "mmap", own(row), "{}: {:?}", row.domain, row.names());
    }
}
