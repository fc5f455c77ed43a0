use std::collections::HashMap;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::memory::ReadMemory;
use crate::unwind_table::{Geometry, PAGE_BYTES, Words, wide_word};

/// A process whose code is one page at `CODE`, with a rule for each byte, and whose stack begins at `STACK`.
struct Made {
    stack: Vec<u64>,
    table: Vec<u64>,
    mappings: Vec<CodeMapping>,
    probed: HashMap<u64, u64>,
    evaluator: core::ops::Range<u64>,
    generation: u64,
}

const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x1000;

impl Made {
    /// `rules` by the offset from which each is in force.
    fn new(stack: Vec<u64>, rules: &[(u32, Rule)]) -> Self {
        let mut rows = vec![(0, Rule::NONE)];
        rows.extend_from_slice(rules);
        let mut table = vec![(rows.len() as u64 - 1) << 32];
        table.extend(rows.iter().map(|(offset, rule)| u64::from(*offset) | u64::from(rule.0) << 32));
        let wide_at = table.len() as u32;
        table.push(wide_word(1 << 20, -16));
        let geometry = Geometry { first_page: 0, rows_at: 1, wide_at, words: wide_at + 1 };
        let mapping = CodeMapping {
            start_addr: CODE,
            end_addr: CODE + u64::from(PAGE_BYTES),
            file_offset: 0,
            table: 0,
            mark: 0,
            geometry,
        };
        Self { stack, table, mappings: vec![mapping], probed: HashMap::new(), evaluator: 0..0, generation: 1 }
    }

    fn walked(&self, bp: u64) -> (Vec<u64>, WalkEnd) {
        self.walked_with(bp, &[])
    }

    fn walked_with(&self, bp: u64, python: &[u64]) -> (Vec<u64>, WalkEnd) {
        let mut frames = PythonFrames { count: python.len() as u64, is_cut: 0, words: [0; MAX_FRAMES] };
        frames.words[..python.len()].copy_from_slice(python);
        let mut stack =
            Stack { count: 9, is_sent: 0, image: 0, end: 9, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
        let end = walk(self, Registers { sp: STACK, bp }, &frames, &mut stack);
        (stack.frames[..stack.count as usize].to_vec(), end)
    }
}

impl ReadMemory for Made {
    fn read_word(&self, addr: u64) -> Option<u64> {
        self.stack.get(usize::try_from(addr.checked_sub(STACK)? / 8).ok()?).copied()
    }
}

impl Words for Made {
    fn word(&self, table: u32, index: u32) -> Option<u64> {
        (table == 0).then(|| self.table.get(index as usize).copied()).flatten()
    }
}

impl Process for Made {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn mapping_of(&self, addr: u64) -> Option<&CodeMapping> {
        self.mappings.find(addr)
    }

    fn probed_return_addr(&self, slot_addr: u64, trampoline: u64) -> Option<u64> {
        self.probed.get(&slot_addr).copied().filter(|return_addr| *return_addr != trampoline)
    }

    fn is_evaluator(&self, addr: u64) -> bool {
        self.evaluator.contains(&addr)
    }
}

fn rule(base: Base, cfa: i64, rbp: i64) -> Rule {
    Rule::new(base, cfa, rbp).unwrap()
}

/// Address of stack word `index`.
fn slot(index: u64) -> u64 {
    STACK + index * 8
}

/// Return address of a call whose last byte is at `offset`.
fn after(offset: u64) -> u64 {
    CODE + offset + 1
}

#[test]
fn steps_through_frames_that_keep_no_frame_pointer() {
    // [ra][local][saved rbp][ra][local][ra]
    let rules = [(10, rule(Base::Rsp, 24, -16)), (20, rule(Base::Rsp, 16, 0)), (30, Rule::OUTERMOST)];
    let made = Made::new(vec![after(10), 1, slot(6), after(20), 2, after(30), 0], &rules);
    assert_eq!(made.walked(0xdead), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
}

#[test]
fn uses_the_restored_frame_pointer() {
    let rules = [(10, rule(Base::Rsp, 16, -16)), (20, rule(Base::Rbp, 16, -16)), (30, Rule::OUTERMOST)];
    let made = Made::new(vec![after(10), slot(4), after(20), 7, 0x1111, after(30)], &rules);
    assert_eq!(made.walked(3), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
}

#[test]
fn follows_realigned_frames_and_large_ones() {
    // rbp points at word 4, where rbp is saved; the word below it holds the CFA.
    let rules = [(10, rule(Base::RbpIndirect, -8, 0)), (20, rule(Base::Rbp, 16, -16)), (30, Rule::OUTERMOST)];
    let made =
        Made::new(vec![after(10), 0, 0, slot(8), slot(9), 0, 0, after(20), 0, 0x77, after(30)], &rules);
    assert_eq!(made.walked(slot(4)), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
    // rsp + 8 holds the address 24 below the CFA.
    let by_slot = Rule::by_slot(8, 24, -16).unwrap();
    let rules = [(10, by_slot), (20, rule(Base::Rbp, 16, -16)), (30, Rule::OUTERMOST)];
    let made = Made::new(vec![after(10), 0, slot(2), slot(6), after(20), 0, 0x77, after(30)], &rules);
    assert_eq!(made.walked(1), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
    let wide = [(10, Rule::wide(Base::WideRsp, 0).unwrap()), (20, Rule::OUTERMOST)];
    let mut words = vec![after(10)];
    words.resize((1 << 17) + 1, 0);
    words[1 << 17] = after(20);
    assert_eq!(Made::new(words, &wide).walked(0), (vec![after(10), after(20)], WalkEnd::Complete));
}

#[test]
fn a_plt_slot_has_a_word_more_behind_its_push() {
    let rules = [(16, Rule::PLT), (32, Rule::OUTERMOST)];
    let before = Made::new(vec![after(16 + 10), after(32)], &rules);
    assert_eq!(before.walked(0), (vec![after(26), after(32)], WalkEnd::Complete));
    let behind = Made::new(vec![after(16 + 11), 1, after(32)], &rules);
    assert_eq!(behind.walked(0), (vec![after(27), after(32)], WalkEnd::Complete));
}

#[test]
fn goes_on_where_a_signal_interrupted() {
    // Behind the return address of the handler lies the ucontext.
    let rules = [(10, Rule::SIGNAL_FRAME), (20, rule(Base::Rbp, 16, -16)), (30, Rule::OUTERMOST)];
    let mut words = vec![0; 40];
    words[0] = after(10);
    words[1 + 120 / 8] = slot(36);
    words[1 + 160 / 8] = slot(34);
    // In the middle of a function whose first byte is the one before: no call is looked for there.
    words[1 + 168 / 8] = CODE + 20;
    words[36] = 0x99;
    words[37] = after(30);
    assert_eq!(
        Made::new(words, &rules).walked(0),
        (vec![after(10), frame::interrupted(CODE + 20), after(30)], WalkEnd::Complete)
    );
}

#[test]
fn code_without_a_file_is_crossed_only_into_a_known_table() {
    let rules = [(10, Rule::OUTERMOST)];
    let jit = 0x9_0000;
    let made = Made::new(vec![jit, 0, slot(5), after(10), 0], &rules);
    assert_eq!(made.walked(slot(2)), (vec![jit, after(10)], WalkEnd::Complete));
    assert_eq!(made.walked(0x10), (vec![jit], WalkEnd::NoUnwindInfo));
    // Two frames of such code; then one that leads nowhere.
    let made = Made::new(vec![jit, slot(3), jit + 8, slot(5), after(10), 0], &rules);
    assert_eq!(made.walked(slot(1)), (vec![jit, jit + 8, after(10)], WalkEnd::Complete));
    let made = Made::new(vec![jit, slot(3), jit + 8, slot(5), 0x666, 0], &rules);
    assert_eq!(made.walked(slot(1)), (vec![jit], WalkEnd::NoUnwindInfo));
    // What may be its return address lies before the frame pointer: it keeps none.
    let made = Made::new(vec![jit, after(10), slot(5), slot(6), 0, 0, slot(8), after(10)], &rules);
    assert_eq!(made.walked(slot(6)), (vec![jit], WalkEnd::NoUnwindInfo));
    // Elsewhere than at the innermost frame it must lie in executable memory.
    let rules = [(5, rule(Base::Rsp, 8, 0)), (10, Rule::OUTERMOST)];
    let mut made = Made::new(vec![after(5), jit, 0, 0x666], &rules);
    assert_eq!(made.walked(0x10), (vec![after(5)], WalkEnd::NoUnwindInfo));
    let table = CodeMapping::NO_TABLE;
    let code = CodeMapping { start_addr: jit - 8, end_addr: jit + 8, table, ..CodeMapping::default() };
    made.mappings.insert(0, code);
    assert_eq!(made.walked(0x10), (vec![after(5), jit], WalkEnd::NoUnwindInfo));
    assert_eq!(made.walked(slot(2)), (vec![after(5), jit], WalkEnd::NoUnwindInfo));
    let rules = [(10, Rule::OUTERMOST)];
    // Mapped code that no table describes is not guessed at.
    let made = Made::new(vec![after(5), 0, slot(5), after(10), 0], &rules);
    assert_eq!(made.walked(slot(2)), (vec![after(5)], WalkEnd::NoUnwindInfo));
}

#[test]
fn asks_for_the_return_address_that_a_probe_has_taken() {
    let trampoline = 0x7fff_ffff_e000;
    let rules = [(10, rule(Base::Rsp, 16, 0)), (20, rule(Base::Rsp, 8, 0)), (30, Rule::OUTERMOST)];
    let mut made = Made::new(vec![after(10), 0, trampoline, after(30)], &rules);
    made.probed.insert(slot(2), after(20));
    assert_eq!(made.walked(0), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
}

#[test]
fn says_why_it_stopped() {
    let end = |words: Vec<u64>, rule: Rule, bp: u64| Made::new(words, &[(10, rule)]).walked(bp);
    assert_eq!(end(vec![], Rule::NONE, 0), (vec![], WalkEnd::Unreadable));
    let frame = vec![after(10)];
    assert_eq!(end(vec![after(10), 0], Rule::UNSUPPORTED, 0), (frame.clone(), WalkEnd::Unsupported));
    assert_eq!(end(vec![after(10), 0], rule(Base::Rsp, 4096, 0), 0), (frame.clone(), WalkEnd::Unreadable));
    assert_eq!(end(vec![after(10), 0], Rule::SIGNAL_FRAME, 0), (frame.clone(), WalkEnd::Unreadable));
    assert_eq!(
        end(vec![after(10), 0], rule(Base::Rbp, 16, 0), slot(0) - 16),
        (frame.clone(), WalkEnd::Astray)
    );
    assert_eq!(end(vec![after(10), 0], rule(Base::Rsp, 8, 0), 0), (frame, WalkEnd::Complete));
    let (frames, why) = end(vec![after(10); 300], rule(Base::Rsp, 8, 0), 0);
    assert_eq!((frames.len(), why), (MAX_FRAMES, WalkEnd::TooDeep));
}

/// Word of a Python frame for tests.
fn python(number: u64) -> u64 {
    frame::python(number * 16, 0)
}

#[test]
fn python_frames_take_the_place_of_the_interpreter() {
    // native 10, evaluator 20 (words 2 to 4), native 30, evaluator 40 (words 6 and 7), outermost 50
    let rules = [
        (10, rule(Base::Rsp, 8, 0)),
        (20, rule(Base::Rsp, 24, 0)),
        (30, rule(Base::Rsp, 8, 0)),
        (40, rule(Base::Rsp, 16, 0)),
        (50, Rule::OUTERMOST),
    ];
    let words = vec![after(10), after(20), 0, 0, after(30), after(40), 0, after(50)];
    let marked = |first: u64, second: u64| {
        [PythonFrames::run(first, 2), python(1), python(2), PythonFrames::run(second, 1), python(3)]
    };
    let mut made = Made::new(words.clone(), &rules);
    let stitched = vec![after(10), python(1), python(2), after(30), python(3), after(50)];
    assert_eq!(made.walked_with(0, &marked(slot(3), slot(6))), (stitched, WalkEnd::Complete));
    // A run whose frames are all being built hides the evaluator.
    let empty = [PythonFrames::run(slot(3), 0), PythonFrames::run(slot(6), 1), python(3)];
    let hidden = vec![after(10), after(30), python(3), after(50)];
    assert_eq!(made.walked_with(0, &empty), (hidden, WalkEnd::Complete));
    // What has no place comes last, and is told.
    let unplaced = vec![after(10), python(1), python(2), after(30), after(40), after(50), python(3)];
    assert_eq!(made.walked_with(0, &marked(slot(3), slot(300))), (unplaced, WalkEnd::PythonUnplaced));
    // Without marks the code decides.
    made.evaluator = after(39)..after(41);
    let old = [PythonFrames::run(0, 1), python(3)];
    let by_code = vec![after(10), after(20), after(30), python(3), after(50)];
    assert_eq!(made.walked_with(0, &old), (by_code, WalkEnd::Complete));
    // Where the native part is cut, the Python frames go on.
    let cut = [(10, rule(Base::Rsp, 8, 0)), (20, rule(Base::Rsp, 24, 0)), (30, Rule::UNSUPPORTED)];
    let made = Made::new(words, &cut);
    let frames = vec![after(10), python(1), python(2), after(30), python(3)];
    assert_eq!(made.walked_with(0, &marked(slot(3), slot(6))), (frames, WalkEnd::Unsupported));
}

#[test]
fn runs_of_every_length_are_taken_whole_and_in_order() {
    let rules = [(10, rule(Base::Rsp, 16, 0)), (20, Rule::OUTERMOST)];
    let made = Made::new(vec![after(10), 0, after(20)], &rules);
    for frames in 1..MAX_FRAMES as u64 - 1 {
        let words: Vec<u64> = (1..=frames).map(python).collect();
        let mut run = vec![PythonFrames::run(slot(1), frames)];
        run.extend(&words);
        let (seen, end) = made.walked_with(0, &run);
        let whole: Vec<u64> = words.into_iter().chain([after(20)]).collect();
        assert_eq!((seen, end), (whole, WalkEnd::Complete), "{frames} frames");
    }
}

#[test]
fn a_zero_below_code_without_a_table_is_not_the_end_of_a_thread() {
    // rbp is a number of a caller's that points into the stack: behind it lies no return address, but 0.
    let (jit, table) = (0x9_0000, CodeMapping::NO_TABLE);
    let mut made = Made::new(vec![after(5), jit, 7, 0, 0], &[(5, rule(Base::Rsp, 8, 0))]);
    let code = CodeMapping { start_addr: jit - 8, end_addr: jit + 8, table, ..CodeMapping::default() };
    made.mappings.insert(0, code);
    assert_eq!(made.walked(slot(2)), (vec![after(5), jit], WalkEnd::NoUnwindInfo));
}

#[test]
fn a_coroutine_ends_where_its_library_begins_it() {
    // evaluator 10, the library 20, and what was left there by another coroutine
    let rules = [(10, rule(Base::Rsp, 16, 0)), (20, rule(Base::Rsp, 8, 0)), (30, Rule::OUTERMOST)];
    let mut made = Made::new(vec![after(10), 0, after(20), after(30)], &rules);
    let run = [PythonFrames::run(slot(1), 1), python(3)];
    let whole = vec![python(3), after(20), after(30)];
    assert_eq!(made.walked_with(0, &run), (whole, WalkEnd::Complete));
    made.mappings[0].mark = CodeMapping::BEGINS_COROUTINES;
    assert_eq!(made.walked_with(0, &run), (vec![python(3), after(20)], WalkEnd::Complete));
    // Where Python frames come behind it, or there are none at all, it is code as any other.
    let outside = [PythonFrames::run(slot(300), 1), python(3)];
    let frames = vec![after(10), after(20), after(30), python(3)];
    assert_eq!(made.walked_with(0, &outside), (frames, WalkEnd::PythonUnplaced));
    assert_eq!(made.walked(0), (vec![after(10), after(20), after(30)], WalkEnd::Complete));
}

#[test]
fn damage_ends_in_a_stack() {
    // Whatever the words are, a walk ends.
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for _ in 0..2000 {
        let mut made = Made::new(
            (0..64).map(|_| [after(next() % 255), slot(next() % 64), next()][next() as usize % 3]).collect(),
            &[(1, Rule(next() as u32)), (90, Rule(next() as u32)), (200, Rule(next() as u32))],
        );
        made.evaluator = after(next() % 255)..after(255);
        let python: Vec<u64> = (0..next() % 20).map(|_| next() << (next() % 40)).collect();
        let (frames, _) = made.walked_with(slot(next() % 64), &python);
        assert!(frames.len() <= MAX_FRAMES);
    }
}

#[test]
fn a_rule_that_an_earlier_walk_found_holds_until_the_mappings_change() {
    let outermost = (30, Rule::OUTERMOST);
    let short = Made::new(vec![after(10), after(30), 0], &[(10, rule(Base::Rsp, 8, 0)), outermost]);
    let long = Made::new(vec![after(10), 1, after(30), 0], &[(10, rule(Base::Rsp, 16, 0)), outermost]);
    let mut kept = Walk::IDLE;
    let mut walked = |made: &Made| {
        let python = PythonFrames { count: 0, is_cut: 0, words: [0; MAX_FRAMES] };
        let mut stack =
            Stack { count: 9, is_sent: 0, image: 0, end: 9, target: 0, codes: 0, frames: [0; MAX_FRAMES] };
        kept.begin(made, Registers { sp: STACK, bp: 0 }, &python);
        while kept.step(made, &python, &mut stack) {}
        kept.finish(&python, &mut stack);
        (stack.frames[..stack.count as usize].to_vec(), WalkEnd::from_number(stack.end).unwrap())
    };
    let whole = (vec![after(10), after(30)], WalkEnd::Complete);
    assert_eq!(walked(&short), whole);
    assert_eq!(walked(&short), whole);
    // Other code in the same place, of which the walk has not been told.
    assert_ne!(walked(&long), whole);
    assert_eq!(walked(&Made { generation: 2, ..long }), whole);
    assert_eq!(walked(&Made { generation: 3, ..short }), whole);
}
