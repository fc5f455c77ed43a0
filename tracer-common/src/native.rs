//! Walking a stack: native frames by unwind tables, and the frames of CPython in the places of the
//! interpreter's own.
//!
//! The walk is a step that is repeated, since the kernel side must bound every loop. What is kept between
//! two steps is a [`Walk`].

mod known_rules;
mod process;
mod python_frames;

use known_rules::KnownRules;
pub use process::{MAX_MAPPINGS, Mappings, Process};
pub use python_frames::PythonFrames;

use crate::event::{MAX_FRAMES, Stack, WalkEnd};
use crate::frame;
use crate::memory::put;
use crate::unwind_table::{Base, CodeMapping, Rule, Special};

/// Registers that the walk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// `rsp`
    pub sp: u64,
    /// `rbp`
    pub bp: u64,
}

/// Frame pointers further than this from the stack pointer are not believed, bytes: every word between is looked
/// at.
const FRAME_POINTER_REACH: u64 = 1 << 11;

/// Where the kernel puts registers in the `ucontext` of a signal frame: distance from its start, bytes.
/// `arch/x86/include/uapi/asm/ucontext.h` and `sigcontext.h` of Linux 6.1.
const UCONTEXT_RBP: u64 = 120;
const UCONTEXT_RSP: u64 = 160;
const UCONTEXT_RIP: u64 = 168;

/// Most steps of a walk: a native frame takes one, or two where Python frames come before it, and a Python
/// frame one. The rest is for the words of frames without a table.
pub const MAX_STEPS: u32 = 5 * MAX_FRAMES as u32;

/// Python frames that one step takes, where a run has so many.
const AT_ONCE: usize = 8;

/// No frame was crossed without a table.
const NOT_GUESSED: u64 = u64::MAX;

/// What the next step does.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Takes the native frame at `pc`.
    Native = 0,
    /// Takes the next frame of a run of Python frames.
    Run = 1,
    /// Takes what is left of the Python frames.
    Rest = 2,
    /// Looks for a return address in frames that were crossed without a table.
    Scan = 3,
}

/// A walk under way.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    sp: u64,
    bp: u64,
    /// Where the frame goes on.
    pc: u64,
    /// 1 where `pc` is an interrupted instruction, 0 where it is a return address.
    is_interrupted: u64,
    /// The mapping that was looked up last.
    mapping: CodeMapping,
    /// [`Process::generation`] at the begin.
    generation: u64,
    phase: u64,
    /// Stack pointer in the native frame that stands for the run being taken.
    run_sp: u64,
    /// Next word of the Python frames.
    python_at: u64,
    /// Not 0 where there is a run that is not taken, or not wholly.
    has_run: u64,
    /// Frames left in it.
    run_left: u64,
    /// Its mark.
    mark_addr: u64,
    /// Number of frames up to the first that was crossed without a table, if known code was not met since.
    guessed_count: u64,
    /// Hash of these.
    guessed_hash: u64,
    /// Address of the next word that is looked at in the frames that were crossed without a table.
    scan_addr: u64,
    /// Where that ends: the frame pointer of the last of them.
    scan_end: u64,
    /// Frames taken.
    count: u64,
    /// How the walk ended.
    end: u64,
    /// Hash of the frames taken.
    hash: u64,
    /// Rules that earlier walks have found.
    known_rules: KnownRules,
}

impl Walk {
    /// Before any walk.
    pub const IDLE: Self = Self {
        sp: 0,
        bp: 0,
        pc: 0,
        is_interrupted: 0,
        mapping: NO_MAPPING,
        generation: 0,
        phase: Phase::Native as u64,
        run_sp: 0,
        python_at: 0,
        has_run: 0,
        run_left: 0,
        mark_addr: 0,
        guessed_count: NOT_GUESSED,
        guessed_hash: 0,
        scan_addr: 0,
        scan_end: 0,
        count: 0,
        end: 0,
        hash: 0,
        known_rules: KnownRules::NONE,
    };

    /// Hash of the frames taken and of how the walk ended.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        folded(self.hash, self.end)
    }

    /// Begins at a function's first instruction: `at_entry.sp` points at the return address. False where
    /// that cannot be read.
    #[inline(always)]
    pub fn begin(&mut self, process: &impl Process, at_entry: Registers, python: &PythonFrames) -> bool {
        self.reset(process, python);
        self.bp = at_entry.bp;
        self.sp = at_entry.sp.wrapping_add(8);
        match process.read_word(at_entry.sp) {
            Some(return_addr) => {
                self.pc = return_addr;
                true
            }
            None => {
                self.end = WalkEnd::Unreadable as u64;
                self.phase = Phase::Rest as u64;
                false
            }
        }
    }

    /// Begins at any instruction, which is the first frame.
    #[inline(always)]
    pub fn begin_at(&mut self, process: &impl Process, pc: u64, at: Registers, python: &PythonFrames) {
        self.reset(process, python);
        self.bp = at.bp;
        self.sp = at.sp;
        self.pc = pc;
        self.is_interrupted = 1;
    }

    #[inline(always)]
    fn reset(&mut self, process: &impl Process, python: &PythonFrames) {
        put(&mut self.count, 0);
        put(&mut self.end, WalkEnd::TooDeep as u64);
        put(&mut self.hash, 0);
        put(&mut self.guessed_count, NOT_GUESSED);
        put(&mut self.phase, Phase::Native as u64);
        put(&mut self.is_interrupted, 0);
        // What was mapped at the last walk need not be.
        put(&mut self.mapping.start_addr, 0);
        put(&mut self.mapping.end_addr, 0);
        put(&mut self.generation, process.generation());
        put(&mut self.python_at, 0);
        self.look_at_run(python);
    }

    /// Takes one frame, or prepares to; false when the walk is over.
    #[inline(always)]
    pub fn step(&mut self, process: &impl Process, python: &PythonFrames, stack: &mut Stack) -> bool {
        if self.phase == Phase::Native as u64 {
            self.native_step(process, python, stack);
            return true;
        }
        if self.phase == Phase::Scan as u64 {
            self.scan_step(process);
            return true;
        }
        self.python_step(python, stack)
    }

    /// Writes number of frames and end into the stack; to be called when the walk is over.
    #[inline(always)]
    pub fn finish(&self, python: &PythonFrames, stack: &mut Stack) {
        stack.count = self.count as u16;
        stack.end = match python.is_cut {
            _ if self.end != WalkEnd::Complete as u64 => self.end as u16,
            0 => WalkEnd::Complete as u16,
            PythonFrames::TOO_MANY => WalkEnd::TooDeep as u16,
            _ => WalkEnd::PythonUnreadable as u16,
        };
    }

    /// One native frame.
    #[inline(always)]
    fn native_step(&mut self, process: &impl Process, python: &PythonFrames, stack: &mut Stack) {
        let is_interrupted = self.is_interrupted != 0;
        // A call may be the last instruction of a function: the byte before its return address is in it.
        let addr = if is_interrupted { self.pc } else { self.pc.wrapping_sub(1) };
        let may_be_known = self.guessed_count == NOT_GUESSED;
        let mut rule = Rule::NONE;
        if may_be_known {
            rule = self.known_rules.of(addr, self.generation);
        }
        let is_known_rule = rule != Rule::NONE;
        if !is_known_rule {
            self.turn_to(process, addr);
        }
        let is_mapped = is_known_rule || self.mapping.end_addr != 0;
        let has_table = is_mapped && self.mapping.table != CodeMapping::NO_TABLE;
        if !is_known_rule && has_table {
            rule = process.rule(&self.mapping, addr);
            if may_be_known && self.mapping.mark == 0 {
                self.known_rules.keep(addr, self.generation, rule);
            }
        }
        if rule != Rule::NONE && self.guessed_count != NOT_GUESSED {
            self.phase = Phase::Scan as u64;
            return;
        }
        let word = if is_interrupted { frame::interrupted(self.pc) } else { self.pc };
        let mut sp = self.sp;
        let (cfa, bp_addr) = match rule.base() {
            Base::Rsp => (sp.wrapping_add(rule.cfa_offset() as u64), saved(rule)),
            Base::Rbp => (self.bp.wrapping_add(rule.cfa_offset() as u64), saved(rule)),
            Base::Plt => {
                // System V x86_64 lazy binding, as binutils 2.40 states it in the PLT's own table: behind the
                // `push` (11 bytes into the slot) there is a word more.
                let pushed = if addr & 15 >= 11 { 8 } else { 0 };
                (sp.wrapping_add(8 + pushed), None)
            }
            Base::RbpIndirect | Base::RspIndirect => {
                let is_rbp = rule.base() as u8 == Base::RbpIndirect as u8;
                let base = if is_rbp { self.bp } else { sp };
                let offset = if is_rbp { rule.cfa_offset() } else { rule.slot_offset() };
                let Some(cfa) = process.read_word(base.wrapping_add(offset as u64)) else {
                    return self.end_behind(word, WalkEnd::Unreadable, stack);
                };
                let cfa = if is_rbp { cfa } else { cfa.wrapping_add(rule.slot_cfa_offset() as u64) };
                // Counted from the CFA, as everywhere else.
                let bp_offset = if is_rbp {
                    self.bp.wrapping_add(rule.rbp_offset() as u64).wrapping_sub(cfa) as i64
                } else {
                    rule.rbp_offset()
                };
                (cfa, if is_rbp || bp_offset != 0 { Some(bp_offset) } else { None })
            }
            Base::WideRsp | Base::WideRbp => {
                let index = self.mapping.geometry.wide_at.wrapping_add(rule.wide_index());
                let Some(wide) = process.word(self.mapping.table, index) else {
                    return self.end_behind(word, WalkEnd::Unsupported, stack);
                };
                let base = if rule.base() as u8 == Base::WideRbp as u8 { self.bp } else { sp };
                let bp_offset = (wide >> 32) as u32 as i32 as i64;
                let cfa = base.wrapping_add(wide as u32 as i32 as i64 as u64);
                (cfa, if bp_offset != 0 { Some(bp_offset) } else { None })
            }
            Base::Special => match rule.special_kind() {
                Special::Outermost => return self.end_behind(word, WalkEnd::Complete, stack),
                Special::Unsupported => return self.end_behind(word, WalkEnd::Unsupported, stack),
                Special::SignalFrame => return self.signal_step(process, word, stack),
                Special::None => {
                    if has_table {
                        return self.end_behind(word, WalkEnd::NoUnwindInfo, stack);
                    }
                    if !is_interrupted
                        && let Some(return_addr) = process.probed_return_addr(sp.wrapping_sub(8), self.pc)
                    {
                        self.pc = return_addr;
                        return;
                    }
                    // Code without a file, as a JIT compiler makes it: by its frame pointer, and only where
                    // that leads back to known code.
                    if self.guessed_count == NOT_GUESSED {
                        // Where no code is known to lie, it may be data that was taken for an address.
                        if is_mapped || self.count == 0 {
                            self.guessed_count = self.count + 1;
                            self.guessed_hash = folded(self.hash, word);
                        } else {
                            self.guessed_count = self.count;
                            self.guessed_hash = self.hash;
                        }
                        self.scan_addr = sp;
                    }
                    if self.bp.wrapping_sub(sp) > FRAME_POINTER_REACH {
                        return self.end_behind(word, WalkEnd::NoUnwindInfo, stack);
                    }
                    self.scan_end = self.bp;
                    (self.bp.wrapping_add(16), Some(-16))
                }
            },
        };
        if cfa <= sp {
            return self.end_behind(word, WalkEnd::Astray, stack);
        }
        let Some(return_addr) = process.read_word(cfa.wrapping_sub(8)) else {
            return self.end_behind(word, WalkEnd::Unreadable, stack);
        };
        if let Some(offset) = bp_addr {
            let Some(bp) = process.read_word(cfa.wrapping_add(offset as u64)) else {
                return self.end_behind(word, WalkEnd::Unreadable, stack);
            };
            self.bp = bp;
        }
        core::mem::swap(&mut sp, &mut self.sp);
        self.sp = cfa;
        self.pc = return_addr;
        self.is_interrupted = 0;
        let is_known = self.guessed_count == NOT_GUESSED;
        if self.has_run != 0 && is_known && self.stands_for_run(process, addr, sp, cfa) {
            self.run_sp = sp;
            self.phase = Phase::Run as u64;
        } else {
            self.push(word, stack);
            let begins_coroutines =
                !is_known_rule && is_mapped && self.mapping.mark == CodeMapping::BEGINS_COROUTINES;
            if begins_coroutines && self.has_run == 0 && python.count != 0 {
                self.end(WalkEnd::Complete);
            }
        }
        if return_addr == 0 {
            // Below code without a table that may be a number of a caller's, which `rbp` happens to point at.
            if self.guessed_count == NOT_GUESSED {
                self.end(WalkEnd::Complete);
            } else {
                self.end_at_guess();
            }
        }
    }

    /// Ends where the certain frames end.
    #[inline(always)]
    fn end_at_guess(&mut self) {
        self.count = self.guessed_count;
        self.hash = self.guessed_hash;
        self.end(WalkEnd::NoUnwindInfo);
    }

    /// One word of the frames that were crossed without a table, when known code is met again. Where they keep no
    /// frame pointer, `rbp` is that of a caller, and the return address lies before it, most often in that same
    /// file: following `rbp` would leave a frame out.
    #[inline(always)]
    fn scan_step(&mut self, process: &impl Process) {
        if self.scan_addr >= self.scan_end {
            self.guessed_count = NOT_GUESSED;
            self.phase = Phase::Native as u64;
            return;
        }
        let word = process.read_word(self.scan_addr).unwrap_or(self.mapping.end_addr);
        self.scan_addr = self.scan_addr.wrapping_add(8);
        if word > self.mapping.start_addr && word <= self.mapping.end_addr {
            self.end_at_guess();
        }
    }

    /// Looks up the mapping that `addr` is in.
    #[inline(always)]
    fn turn_to(&mut self, process: &impl Process, addr: u64) {
        if addr >= self.mapping.start_addr && addr < self.mapping.end_addr {
            return;
        }
        match process.mapping_of(addr) {
            Some(found) => self.remember(found),
            None => {
                put(&mut self.mapping.start_addr, 0);
                put(&mut self.mapping.end_addr, 0);
            }
        }
    }

    /// Keeps a mapping for the next frames, which are often in it too.
    #[inline(always)]
    fn remember(&mut self, found: &CodeMapping) {
        put(&mut self.mapping.start_addr, found.start_addr);
        put(&mut self.mapping.end_addr, found.end_addr);
        put(&mut self.mapping.file_offset, found.file_offset);
        put(&mut self.mapping.table, found.table);
        put(&mut self.mapping.mark, found.mark);
        put(&mut self.mapping.geometry.first_page, found.geometry.first_page);
        put(&mut self.mapping.geometry.rows_at, found.geometry.rows_at);
        put(&mut self.mapping.geometry.wide_at, found.geometry.wide_at);
    }

    /// Whether the native frame at `addr`, between `sp` and `cfa`, is the invocation of the evaluation loop
    /// that executes the next run of Python frames.
    #[inline(always)]
    fn stands_for_run(&self, process: &impl Process, addr: u64, sp: u64, cfa: u64) -> bool {
        if self.mark_addr == 0 {
            return process.is_evaluator(addr);
        }
        self.mark_addr >= sp && self.mark_addr < cfa
    }

    /// From the code that ends a signal handler to what the signal interrupted.
    #[inline(always)]
    fn signal_step(&mut self, process: &impl Process, word: u64, stack: &mut Stack) {
        let sp = self.sp;
        let pc = process.read_word(sp.wrapping_add(UCONTEXT_RIP));
        let interrupted_sp = process.read_word(sp.wrapping_add(UCONTEXT_RSP));
        let bp = process.read_word(sp.wrapping_add(UCONTEXT_RBP));
        let (Some(pc), Some(interrupted_sp), Some(bp)) = (pc, interrupted_sp, bp) else {
            return self.end_behind(word, WalkEnd::Unreadable, stack);
        };
        self.push(word, stack);
        self.sp = interrupted_sp;
        self.bp = bp;
        self.pc = pc;
        self.is_interrupted = 1;
    }

    /// One Python frame; false when the walk is over.
    #[inline(always)]
    fn python_step(&mut self, python: &PythonFrames, stack: &mut Stack) -> bool {
        let at = self.python_at as usize;
        if self.run_left == 0 || at >= MAX_FRAMES {
            // The run is over: what begins behind it?
            self.look_at_run(python);
            if self.phase == Phase::Rest as u64 {
                return self.has_run != 0;
            }
            let is_in_frame = self.mark_addr >= self.run_sp && self.mark_addr < self.sp;
            if self.has_run == 0 || !is_in_frame {
                self.phase = Phase::Native as u64;
            }
            return true;
        }
        let count = self.count as usize;
        if self.run_left >= AT_ONCE as u64 && at <= MAX_FRAMES - AT_ONCE && count <= MAX_FRAMES - AT_ONCE {
            let mut hash = self.hash;
            for index in 0..AT_ONCE {
                let word = python.words[at + index];
                put(&mut stack.frames[count + index], word);
                hash = folded(hash, word);
            }
            self.hash = hash;
            self.count += AT_ONCE as u64;
            self.python_at += AT_ONCE as u64;
            self.run_left -= AT_ONCE as u64;
            return self.count < MAX_FRAMES as u64;
        }
        self.push(python.words[at], stack);
        self.python_at += 1;
        self.run_left -= 1;
        self.count < MAX_FRAMES as u64
    }

    /// Reads the word that begins the next run.
    #[inline(always)]
    fn look_at_run(&mut self, python: &PythonFrames) {
        let at = self.python_at as usize;
        if at >= MAX_FRAMES || self.python_at >= python.count {
            put(&mut self.has_run, 0);
            put(&mut self.run_left, 0);
            return;
        }
        let run = python.words[at];
        self.has_run = 1;
        self.mark_addr = PythonFrames::mark_addr_of(run);
        self.run_left = PythonFrames::frames_of(run);
        self.python_at += 1;
    }

    /// Takes a frame; what does not fit ends the walk.
    #[inline(always)]
    fn push(&mut self, word: u64, stack: &mut Stack) {
        let at = self.count as usize;
        if at >= MAX_FRAMES {
            // The end was set to this at the beginning.
            self.phase = Phase::Rest as u64;
            put(&mut self.has_run, 0);
            put(&mut self.run_left, 0);
            put(&mut self.python_at, u64::MAX);
            self.end = WalkEnd::TooDeep as u64;
            return;
        }
        stack.frames[at] = word;
        self.count += 1;
        self.hash = folded(self.hash, word);
    }

    /// Takes the last native frame, unless it stands for Python frames, and ends the native part.
    #[inline(always)]
    fn end_behind(&mut self, word: u64, end: WalkEnd, stack: &mut Stack) {
        if self.guessed_count != NOT_GUESSED && self.guessed_count <= self.count {
            // What was crossed without a table led nowhere: of it only the first frame is certain, if that.
            return self.end_at_guess();
        }
        self.push(word, stack);
        self.end(end);
    }

    /// Ends the native part.
    #[inline(always)]
    fn end(&mut self, end: WalkEnd) {
        if self.phase == Phase::Rest as u64 {
            return;
        }
        let is_whole = end as u64 == WalkEnd::Complete as u64;
        let is_left = self.has_run != 0 && self.phase == Phase::Native as u64;
        self.end = if is_whole && is_left { WalkEnd::PythonUnplaced as u64 } else { end as u64 };
        self.phase = Phase::Rest as u64;
    }
}

const NO_MAPPING: CodeMapping = CodeMapping {
    start_addr: 0,
    end_addr: 0,
    file_offset: 0,
    table: CodeMapping::NO_TABLE,
    mark: 0,
    geometry: crate::unwind_table::Geometry { first_page: 0, rows_at: 0, wide_at: 0, words: 0 },
};

/// Distance from the CFA to the saved `rbp`, where it was saved.
#[inline(always)]
fn saved(rule: Rule) -> Option<i64> {
    let offset = rule.rbp_offset();
    if offset != 0 { Some(offset) } else { None }
}

/// Multiply and fold: the multiplier is 2^64 divided by the golden ratio, made odd.
#[inline(always)]
fn folded(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 32
}

/// Walks from a function's first instruction outwards, all at once.
pub fn walk(
    process: &impl Process,
    at_entry: Registers,
    python: &PythonFrames,
    stack: &mut Stack,
) -> WalkEnd {
    let mut walk = Walk::IDLE;
    walk.begin(process, at_entry, python);
    for _ in 0..MAX_STEPS {
        if !walk.step(process, python, stack) {
            break;
        }
    }
    walk.finish(python, stack);
    WalkEnd::from_number(stack.end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
