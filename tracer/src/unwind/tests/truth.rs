//! Compiled tables of real programs against their unwind information, executed as DWARF says.

use std::fs;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EndianSlice, EvaluationResult, LittleEndian, Location,
    Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value, X86_64,
};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use tracer_common::unwind_table::{Base, Rule, Special};

use super::super::compile;
use super::{Lookup, build};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A caller's frame: CFA, return address, `rbp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Frame {
        cfa: u64,
        return_addr: u64,
        bp: u64,
    },
    Outermost,
    /// The rule needs what a walk does not have.
    OutOfReach,
}

/// Registers and memory of a made-up frame. Each word of memory has another value.
#[derive(Clone, Copy)]
struct State {
    sp: u64,
    bp: u64,
    pc: u64,
}

fn memory(addr: u64) -> u64 {
    (addr ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !7
}

impl State {
    fn register(self, register: Register) -> Option<u64> {
        match register {
            X86_64::RSP => Some(self.sp),
            X86_64::RBP => Some(self.bp),
            X86_64::RA => Some(self.pc),
            _ => None,
        }
    }

    /// What `rule` says.
    fn by_rule(self, rule: Rule, wide: &[u64]) -> Caller {
        let at = |base: u64, offset: i64| base.wrapping_add_signed(offset);
        let frame = |cfa: u64, bp: u64| Caller::Frame { cfa, return_addr: memory(cfa.wrapping_sub(8)), bp };
        let saved = |cfa: u64, offset: i64| if offset == 0 { self.bp } else { memory(at(cfa, offset)) };
        let fixed = |base: u64, cfa_offset: i64, rbp_offset: i64| {
            let cfa = at(base, cfa_offset);
            frame(cfa, saved(cfa, rbp_offset))
        };
        let wide = |base: u64| {
            let word = wide[rule.wide_index() as usize];
            fixed(base, i64::from(word as i32), i64::from((word >> 32) as i32))
        };
        match rule.base() {
            Base::Rsp => fixed(self.sp, rule.cfa_offset(), rule.rbp_offset()),
            Base::Rbp => fixed(self.bp, rule.cfa_offset(), rule.rbp_offset()),
            Base::RbpIndirect => {
                frame(memory(at(self.bp, rule.cfa_offset())), memory(at(self.bp, rule.rbp_offset())))
            }
            Base::RspIndirect => {
                let cfa = at(memory(at(self.sp, rule.slot_offset())), rule.slot_cfa_offset());
                frame(cfa, saved(cfa, rule.rbp_offset()))
            }
            Base::Plt => fixed(self.sp, if self.pc & 15 >= 11 { 16 } else { 8 }, 0),
            Base::WideRsp => wide(self.sp),
            Base::WideRbp => wide(self.bp),
            Base::Special => match rule.special_kind() {
                // `struct ucontext` of x86_64: rbp, rsp and rip at 120, 160 and 168.
                Special::SignalFrame => Caller::Frame {
                    cfa: memory(self.sp + 160),
                    return_addr: memory(self.sp + 168),
                    bp: memory(self.sp + 120),
                },
                Special::Outermost => Caller::Outermost,
                Special::Unsupported => Caller::OutOfReach,
                Special::None => panic!("nothing known at {:#x}", self.pc),
            },
        }
    }

    /// What `row` says, by a whole interpreter of expressions.
    fn by_row(self, row: &UnwindTableRow<usize>, section: &EhFrame<Bytes<'_>>) -> Caller {
        self.frame(row, section).unwrap_or(Caller::OutOfReach)
    }

    fn frame(self, row: &UnwindTableRow<usize>, section: &EhFrame<Bytes<'_>>) -> Option<Caller> {
        if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
            return Some(Caller::Outermost);
        }
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => self.evaluate(expression, None, section)?,
        };
        let value = |register: Register| match row.register(register) {
            None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => self.register(register),
            Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::Expression(at)) => Some(memory(self.evaluate(&at, Some(cfa), section)?)),
            Some(RegisterRule::ValExpression(at)) => self.evaluate(&at, Some(cfa), section),
            Some(RegisterRule::Register(other)) => self.register(other),
            Some(_) => None,
        };
        Some(Caller::Frame { cfa, return_addr: value(X86_64::RA)?, bp: value(X86_64::RBP)? })
    }

    fn evaluate(
        self,
        expression: &UnwindExpression<usize>,
        initial: Option<u64>,
        section: &EhFrame<Bytes<'_>>,
    ) -> Option<u64> {
        let encoding = gimli::Encoding { format: gimli::Format::Dwarf32, version: 4, address_size: 8 };
        let mut evaluation = expression.get(section).unwrap().evaluation(encoding);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut result = evaluation.evaluate().unwrap();
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?)).unwrap()
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(memory(address))).unwrap()
                }
                other => panic!("{other:?}"),
            };
        }
        match evaluation.as_result() {
            [piece] => match piece.location {
                Location::Address { address } => Some(address),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

/// How many rows were compared, and how many of them the table does not support although they could be
/// followed.
#[derive(Debug, Default)]
struct Compared {
    rows: usize,
    given_up: usize,
}

/// Compares every row of the file at start, middle and end.
fn compare(elf: &[u8]) -> Compared {
    let table = compile(elf, None).unwrap();
    let wide = &table.words[table.geometry.wide_at as usize..];
    let lookup = Lookup::new(elf, &table);
    let file = ElfFile64::<object::LittleEndian>::parse(elf).unwrap();
    let section = file.section_by_name(".eh_frame").unwrap();
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let eh_frame = EhFrame::new(section.data().unwrap(), LittleEndian);
    let mut entries = eh_frame.entries(&bases);
    let mut context = UnwindContext::new();
    let mut compared = Compared::default();
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let entry = partial.parse(EhFrame::cie_from_offset).unwrap();
        let mut table = entry.rows(&eh_frame, &bases, &mut context).unwrap();
        while let Some(row) = table.next_row().unwrap() {
            let (start, end) = (row.start_address(), row.end_address());
            if start == end {
                continue;
            }
            compared.rows += 1;
            for pc in [start, start + (end - start) / 2, end - 1] {
                let state = State { sp: 0x7ffd_1234_5670, bp: 0x7ffd_2222_3330, pc };
                let (expected, found) = (state.by_row(row, &eh_frame), state.by_rule(lookup.at(pc), wide));
                if found == Caller::OutOfReach && expected != found {
                    compared.given_up += 1;
                } else if expected == Caller::OutOfReach && lookup.at(pc).base() == Base::RspIndirect {
                    // Known by what the callee saves, of which this row says nothing.
                } else if found == Caller::Outermost && begins_a_context(elf, &lookup, &entry) {
                    // What the row says of it is wrong.
                } else {
                    assert_eq!(found, expected, "at {pc:#x}: {row:?}");
                }
            }
        }
    }
    compared
}

/// Whether `entry` is of the C library's `__start_context`, which is known by its code.
fn begins_a_context(
    elf: &[u8],
    lookup: &Lookup<'_>,
    entry: &gimli::FrameDescriptionEntry<Bytes<'_>>,
) -> bool {
    let offset = lookup.offset_of(entry.initial_address()) as usize;
    let code = &elf[offset..offset + entry.len() as usize];
    code.windows(7).any(|window| window == [0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24])
}

fn existing(candidates: &[&str]) -> Option<Vec<u8>> {
    candidates.iter().find_map(|path| fs::read(path).ok())
}

#[test]
fn the_c_library_and_the_loader() {
    let loader = existing(&["/lib64/ld-linux-x86-64.so.2"]).unwrap();
    let library =
        existing(&["/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6"]).unwrap();
    // Lazy binding keeps the CFA in `rbx`, where what it calls finds it.
    let table = compile(&loader, None).unwrap();
    let mut rules = table.words[table.geometry.rows_at as usize..].iter().map(|row| Rule((row >> 32) as u32));
    assert!(rules.any(|rule| rule.base() == Base::RspIndirect && rule.slot_offset() < 0));
    for (elf, least) in [(loader, 2_000), (library, 15_000)] {
        let compared = compare(&elf);
        assert!(compared.rows > least && compared.given_up == 0, "{compared:?}");
    }
}

#[test]
fn this_very_program() {
    let compared = compare(&fs::read("/proc/self/exe").unwrap());
    assert!(compared.rows > 50_000 && compared.given_up == 0, "{compared:?}");
}

#[test]
fn large_programs_where_there_are() {
    for candidates in [
        ["/usr/bin/python3.11", "/usr/bin/python3"],
        ["/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "/usr/lib64/libcrypto.so.3"],
        ["/usr/lib/x86_64-linux-gnu/libstdc++.so.6", "/usr/lib64/libstdc++.so.6"],
    ] {
        let Some(elf) = existing(&candidates) else { continue };
        let compared = compare(&elf);
        // What only hand-written assembly of OpenSSL does: the CFA in a word on the stack, plus the
        // registers saved above it.
        assert!(compared.given_up * 200 <= compared.rows, "{candidates:?}: {compared:?}");
    }
}

#[test]
fn realigned_and_far_frames() {
    let source = "
        typedef long v4 __attribute__((vector_size(32)));
        void outside(void *);
        void realigned(int n) { v4 v = {n}; char room[n]; outside(&v); outside(room); }
        int far(int n) { char room[400000]; room[n] = 1; outside(room); return room[n + 1]; }";
    for flags in [["-mavx2", "-fomit-frame-pointer"], ["-mno-avx", "-fno-omit-frame-pointer"]] {
        let (_dir, path) =
            build("far.c", source, &["-shared", "-fPIC", "-O2", "-nostdlib", flags[0], flags[1]]);
        let elf = fs::read(path).unwrap();
        let compared = compare(&elf);
        // Behind `leave`, GCC does not say that `rbp` is the caller's again.
        let at_ret = 3;
        assert!(compared.rows > 10 && compared.given_up <= at_ret, "{compared:?}");
    }
}
