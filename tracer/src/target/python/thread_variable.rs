//! How the interpreter's code reaches a variable of the thread, and how far that lies from the thread's
//! pointer to itself.
//!
//! `_PyThreadState_GetCurrent` does nothing but give `_Py_tss_tstate` (3.12 on), and
//! `PyGILState_GetThisThreadState` nothing but give `_Py_tss_gilstate` (3.15 on): the variables have no
//! symbols that stay in a stripped file, the functions have.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use tracer_common::memory::ReadMemory;
use tracer_common::python::ThreadStorage;

use super::thread_list::Thread;

/// Bytes of code that are read.
pub(super) const CODE_BYTES: u64 = 64;

/// Blocks of thread variables further than this from the thread's pointer are not of the program's start, and
/// may lie elsewhere in each thread.
const STATIC_BYTES: i64 = 1 << 20;

/// Where a thread has a pointer to its blocks of variables: `tcbhead_t.dtv` of glibc, `struct pthread.dtv` of
/// musl.
const DTV_OFFSET: u64 = 8;

/// How code reaches a variable of the thread. Addresses are the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThreadVariable {
    /// By its distance, which the linker knew (local exec).
    Fixed(i64),
    /// By a distance that the loader put at this address (initial exec).
    InSlot {
        /// Where it is.
        slot_vaddr: u64,
        /// What is added to it.
        displacement: i64,
    },
    /// By the number of its module and its place there, a pair that the loader put at this address (general
    /// and local dynamic).
    ByModule {
        /// Where it is.
        pair_vaddr: u64,
        /// What is added to it.
        displacement: i64,
    },
}

impl ThreadVariable {
    /// Reads a function that gives the variable's value, and nothing else.
    pub(super) fn given_by(code: &[u8], vaddr: u64) -> Option<Self> {
        // What the result register holds: the thread's pointer, what a slot holds, the block's address.
        let mut holds_pointer = false;
        let mut slot_vaddr = None;
        let mut pair_vaddr = None;
        let mut was_called = false;
        for instruction in &mut Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE) {
            if instruction.is_invalid() {
                return None;
            }
            match instruction.flow_control() {
                FlowControl::Next => {}
                // A call through the descriptor itself, as TLSDESC has it, has a register in its operand.
                FlowControl::Call | FlowControl::IndirectCall if pair_vaddr.is_some() && !was_called => {
                    was_called = instruction.op0_kind() == OpKind::NearBranch64
                        || instruction.is_ip_rel_memory_operand();
                    if !was_called {
                        return None;
                    }
                    continue;
                }
                _ => return None,
            }
            match instruction.code() {
                Code::Lea_r64_m if instruction.is_ip_rel_memory_operand() => {
                    pair_vaddr = Some(instruction.ip_rel_memory_address());
                }
                Code::Mov_r64_rm64 if instruction.op1_kind() == OpKind::Memory => {
                    let displacement = instruction.memory_displacement64() as i64;
                    let base = instruction.memory_base();
                    let is_of_thread = instruction.segment_prefix() == Register::FS;
                    if instruction.memory_index() != Register::None {
                        return None;
                    }
                    match (is_of_thread, base) {
                        (true, Register::None) if displacement != 0 => {
                            return Some(Self::Fixed(displacement));
                        }
                        (true, Register::None) => holds_pointer = true,
                        (true, _) => return Some(Self::InSlot { slot_vaddr: slot_vaddr?, displacement }),
                        (false, Register::RIP) => slot_vaddr = Some(instruction.ip_rel_memory_address()),
                        (false, Register::RAX) if was_called => {
                            return Some(Self::ByModule { pair_vaddr: pair_vaddr?, displacement });
                        }
                        (false, Register::RSP | Register::RBP) => {}
                        (false, _) if holds_pointer => return Some(Self::Fixed(displacement)),
                        _ => return None,
                    }
                }
                _ if touches_nothing(&instruction) => {}
                _ => return None,
            }
        }
        None
    }

    /// Distance from each thread's pointer to itself to its variable, in a process that has its file loaded
    /// at `bias`. `None` where it is not the same for all threads, or not known yet.
    pub(super) fn distance(
        &self,
        memory: &impl ReadMemory,
        bias: u64,
        threads: &[Thread],
        storage: ThreadStorage,
    ) -> Option<i64> {
        match *self {
            Self::Fixed(distance) => Some(distance),
            Self::InSlot { slot_vaddr, displacement } => {
                let distance = memory.read_word(bias.wrapping_add(slot_vaddr))? as i64;
                Some(distance.wrapping_add(displacement)).filter(is_static)
            }
            Self::ByModule { pair_vaddr, displacement } => {
                let pair_addr = bias.wrapping_add(pair_vaddr);
                let module = memory.read_word(pair_addr).filter(|module| *module != 0)?;
                let inside = memory.read_word(pair_addr.wrapping_add(8))? as i64;
                let entry_bytes = match storage {
                    ThreadStorage::Glibc => 16,
                    ThreadStorage::Musl => 8,
                };
                let mut found = None;
                for thread in threads {
                    let Some(dtv) = memory.read_word(thread.fs_base.wrapping_add(DTV_OFFSET)) else {
                        continue;
                    };
                    let entry_addr = dtv.wrapping_add(module.wrapping_mul(entry_bytes));
                    let Some(block) = memory.read_word(entry_addr) else { continue };
                    let distance = block.wrapping_sub(thread.fs_base) as i64;
                    let distance = distance.wrapping_add(inside).wrapping_add(displacement);
                    // A block that was not needed yet has no address: TLS_DTV_UNALLOCATED of glibc is -1.
                    if matches!(block, 0 | u64::MAX) {
                        continue;
                    }
                    if !is_static(&distance) || *found.get_or_insert(distance) != distance {
                        return None;
                    }
                }
                found
            }
        }
    }
}

/// Whether a distance is one within the block that each thread has from its start: below its pointer.
fn is_static(distance: &i64) -> bool {
    (-STATIC_BYTES..0).contains(distance)
}

/// Prologues, and what a sanitizer or `-fcf-protection` leaves.
fn touches_nothing(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Endbr64, Nop, Push, Sub};
    match instruction.mnemonic() {
        Endbr64 | Nop | Push => true,
        Sub => instruction.op0_register() == Register::RSP,
        iced_x86::Mnemonic::Mov => {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RBP
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn given_by(code: &[u8]) -> Option<ThreadVariable> {
        ThreadVariable::given_by(code, 0x1000)
    }

    #[test]
    fn each_way_to_a_variable_is_read() {
        // Debian's python3.14: endbr64; mov rax,fs:[-24]; ret
        let fixed = b"\xf3\x0f\x1e\xfa\x64\x48\x8b\x04\x25\xe8\xff\xff\xff\xc3";
        assert_eq!(given_by(fixed), Some(ThreadVariable::Fixed(-24)));
        // mov rax,fs:[0]; mov rax,[rax-16]; ret
        let by_pointer = b"\x64\x48\x8b\x04\x25\x00\x00\x00\x00\x48\x8b\x40\xf0\xc3";
        assert_eq!(given_by(by_pointer), Some(ThreadVariable::Fixed(-16)));
        // mov rax,[rip+0x100]; mov rax,fs:[rax]; ret
        let in_slot = b"\x48\x8b\x05\x00\x01\x00\x00\x64\x48\x8b\x00\xc3";
        assert_eq!(given_by(in_slot), Some(ThreadVariable::InSlot { slot_vaddr: 0x1107, displacement: 0 }));
        // libpython3.13: sub rsp,8; data16 lea rdi,[rip+0x100]; data16 data16 rex.W call; mov rax,[rax]; …
        let by_module = b"\x48\x83\xec\x08\x66\x48\x8d\x3d\x00\x01\x00\x00\x66\x66\x48\xe8\x00\x00\x00\x00\x48\x8b\x00\x48\x83\xc4\x08\xc3";
        assert_eq!(
            given_by(by_module),
            Some(ThreadVariable::ByModule { pair_vaddr: 0x110c, displacement: 0 })
        );
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        // A descriptor: lea rax,[rip+0x100]; call [rax]; mov rax,fs:[rax]; ret
        assert_eq!(given_by(b"\x48\x8d\x05\x00\x01\x00\x00\xff\x10\x64\x48\x8b\x00\xc3"), None);
        // Debian's PyGILState_GetThisThreadState of 3.13: cmp dword [rip+…],0; je …
        assert_eq!(given_by(b"\xf3\x0f\x1e\xfa\x83\x3d\x00\x01\x00\x00\x00\x74\x00"), None);
        assert_eq!(given_by(b"\xc3"), None);
        assert_eq!(given_by(b""), None);
    }

    struct Words(HashMap<u64, u64>);

    impl ReadMemory for Words {
        fn read_word(&self, addr: u64) -> Option<u64> {
            self.0.get(&addr).copied()
        }
    }

    #[test]
    fn a_distance_that_threads_do_not_share_is_none() {
        let variable = ThreadVariable::ByModule { pair_vaddr: 0x10, displacement: 4 };
        let threads = [0x10_0000, 0x20_0000].map(|fs_base| Thread { state: 1, fs_base });
        let mut words = HashMap::from([(0x5010, 2), (0x5018, 12)]);
        for fs_base in [0x10_0000, 0x20_0000] {
            words.insert(fs_base + 8, fs_base + 0x800);
            words.insert(fs_base + 0x800 + 2 * 16, fs_base - 64);
        }
        let distance = |words: &HashMap<u64, u64>| {
            variable.distance(&Words(words.clone()), 0x5000, &threads, ThreadStorage::Glibc)
        };
        assert_eq!(distance(&words), Some(-48));
        words.insert(0x20_0820, u64::MAX);
        assert_eq!(distance(&words), Some(-48));
        words.insert(0x20_0820, 0x20_0000 - 128);
        assert_eq!(distance(&words), None);
        words.insert(0x20_0820, 0x7fff_0000);
        assert_eq!(distance(&words), None);
    }
}
