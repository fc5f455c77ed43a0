//! Which programs sit on a function, and how each is linked. Pure data.

use tracer_common::probe::{Action, Ending, Function};

use super::multi::LinkKind;

/// What probes are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To trace.
    #[default]
    Trace,
    /// To cost what a part of it costs.
    Measure(Part),
    /// To count calls, those of each site in a cell of its own.
    Count,
    /// To count calls, all in one cell.
    CountTogether,
}

/// A part of what a traced call costs. Each has programs that do that part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All traps, with programs that do nothing.
    Traps,
    /// The traps at entries alone.
    Entries,
    /// These, with a stack of the kernel's own at allocations.
    GetStack,
    /// These, with a stack as it is taken for a trace.
    Stack,
}

/// One of the programs that sit on functions, in the order in which they are attached: the ends of calls,
/// which do nothing without a beginning, then the frees, then the allocations. At no moment is an
/// allocation seen whose free would not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Ends calls that return a block.
    AllocateExit,
    /// The same at `ret` instructions.
    AllocateLeave,
    /// Ends calls that give a block back.
    ReleaseExit,
    /// Ends calls that give a block back for another.
    ReplaceExit,
    /// Ends calls that an exception leaves.
    Throw,
    /// Begins calls that give a block back.
    ReleaseEnter,
    /// Begins and ends them.
    Release,
    /// Begins calls that give a block back for another.
    ReplaceEnter,
    /// Begins and ends them.
    Replace,
    /// Tells blocks that are put back into pymalloc's pools.
    PoolPut,
    /// Tells samples of an allocator that are given back.
    UsdtFree,
    /// Begins calls that return a block.
    AllocateEnter,
    /// Begins and ends them.
    Allocate,
    /// Tells blocks that are taken from pymalloc's pools.
    PoolTake,
    /// Tells samples of an allocator.
    UsdtAlloc,
    /// Does nothing at a return.
    EmptyExit,
    /// Does nothing at an entry.
    EmptyEnter,
    /// Does nothing at `ret` instructions.
    EmptyLeave,
    /// Does nothing at both ends.
    Empty,
    /// Takes a stack at an entry, and no more.
    StackEnter,
    /// Has the kernel take one.
    GetStackEnter,
    /// Counts entries.
    Count,
    /// Counts the code objects of CPython that go.
    CodeGone,
}

impl Hook {
    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::AllocateExit => "allocate_exit",
            Self::AllocateLeave => "allocate_leave",
            Self::ReleaseExit => "release_exit",
            Self::ReplaceExit => "replace_exit",
            Self::Throw => "throw_enter",
            Self::ReleaseEnter => "release_enter",
            Self::Release => "release",
            Self::ReplaceEnter => "replace_enter",
            Self::Replace => "replace",
            Self::AllocateEnter => "allocate_enter",
            Self::Allocate => "allocate",
            Self::EmptyExit => "empty_exit",
            Self::EmptyEnter | Self::EmptyLeave | Self::Empty => "empty_enter",
            Self::StackEnter => "stack_enter",
            Self::GetStackEnter => "get_stack_enter",
            Self::PoolPut => "pool_put",
            Self::PoolTake => "pool_take",
            Self::UsdtFree => "usdt_free",
            Self::UsdtAlloc => "usdt_alloc",
            Self::Count => "count_hit",
            Self::CodeGone => "code_gone",
        }
    }

    /// How it is linked.
    pub const fn kind(self) -> LinkKind {
        match self {
            Self::AllocateExit | Self::ReleaseExit | Self::ReplaceExit | Self::EmptyExit => LinkKind::Return,
            Self::Allocate | Self::Release | Self::Replace | Self::Empty => LinkKind::Session,
            _ => LinkKind::Entry,
        }
    }

    /// Whether it sits on the function's `ret` instructions, not at its beginning.
    pub const fn at_rets(self) -> bool {
        matches!(self, Self::AllocateLeave | Self::EmptyLeave)
    }

    /// The two programs that do what a session's does, for kernels without.
    pub const fn split(self) -> Option<[Self; 2]> {
        match self {
            Self::Allocate => Some([Self::AllocateExit, Self::AllocateEnter]),
            Self::Release => Some([Self::ReleaseExit, Self::ReleaseEnter]),
            Self::Replace => Some([Self::ReplaceExit, Self::ReplaceEnter]),
            Self::Empty => Some([Self::EmptyExit, Self::EmptyEnter]),
            _ => None,
        }
    }

    /// The hooks of a function.
    pub fn of(function: Function, purpose: Purpose, has_sessions: bool) -> Vec<Self> {
        let (session, enter, leave) = match purpose {
            Purpose::Count | Purpose::CountTogether
                if function == Function::CxaThrow || function.tells_samples() =>
            {
                return Vec::new();
            }
            Purpose::Count | Purpose::CountTogether => return vec![Self::Count],
            Purpose::Measure(Part::Traps) => (Self::Empty, Self::EmptyEnter, Self::EmptyLeave),
            Purpose::Measure(part) => return vec![Self::of_part(function, part)],
            Purpose::Trace => match function.action() {
                Action::Allocate { .. } | Action::Map | Action::MoveBreak | Action::SetBreak => {
                    (Self::Allocate, Self::AllocateEnter, Self::AllocateLeave)
                }
                Action::Release => (Self::Release, Self::ReleaseEnter, Self::AllocateLeave),
                Action::Throw => (Self::Throw, Self::Throw, Self::Throw),
                Action::TakeFromPool => (Self::PoolTake, Self::PoolTake, Self::PoolTake),
                Action::PutIntoPool => (Self::PoolPut, Self::PoolPut, Self::PoolPut),
                Action::TellSample => (Self::UsdtAlloc, Self::UsdtAlloc, Self::UsdtAlloc),
                Action::TellSampleGone => (Self::UsdtFree, Self::UsdtFree, Self::UsdtFree),
                Action::Resize { .. } | Action::ResizeInPlace | Action::Unmap | Action::Remap => {
                    (Self::Replace, Self::ReplaceEnter, Self::AllocateLeave)
                }
            },
        };
        match (function.ending(), session.split()) {
            (Ending::Unseen, _) => vec![enter],
            (Ending::AtRet, _) => vec![leave, enter],
            (Ending::ReturnProbe, Some(pair)) if !has_sessions => pair.to_vec(),
            (Ending::ReturnProbe, _) => vec![session],
        }
    }

    /// What costs the part of a call, at the entry of `function`.
    fn of_part(function: Function, part: Part) -> Self {
        match (function.action(), part) {
            (Action::Allocate { .. }, Part::Stack) => Self::StackEnter,
            (Action::Allocate { .. }, Part::GetStack) => Self::GetStackEnter,
            _ => Self::EmptyEnter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_never_meets_a_return_probe() {
        for function in Function::ALL {
            for purpose in [Purpose::Trace, Purpose::Measure(Part::Traps), Purpose::Count] {
                for has_sessions in [false, true] {
                    let hooks = Hook::of(*function, purpose, has_sessions);
                    let returns = hooks.iter().any(|hook| hook.kind() != LinkKind::Entry);
                    let expected = purpose != Purpose::Count && function.ending() == Ending::ReturnProbe;
                    assert_eq!(returns, expected, "{function:?} {purpose:?}");
                    assert_eq!(
                        hooks.iter().any(|hook| hook.at_rets()),
                        purpose != Purpose::Count && function.ending() == Ending::AtRet
                    );
                }
            }
        }
    }

    #[test]
    fn the_ends_of_calls_come_before_their_beginnings_and_frees_before_allocations() {
        let of = |function| Hook::of(function, Purpose::Trace, false);
        assert_eq!(of(Function::Malloc), [Hook::AllocateExit, Hook::AllocateEnter]);
        assert_eq!(of(Function::OperatorNew), [Hook::AllocateLeave, Hook::AllocateEnter]);
        assert_eq!(of(Function::Free), [Hook::ReleaseEnter]);
        assert_eq!(of(Function::CxaThrow), [Hook::Throw]);
        assert_eq!(of(Function::OtelAlloc), [Hook::UsdtAlloc]);
        assert!(Hook::UsdtFree < Hook::UsdtAlloc);
        assert!(Hook::of(Function::OtelAlloc, Purpose::Count, true).is_empty());
        assert!(Hook::AllocateExit < Hook::ReleaseEnter && Hook::AllocateLeave < Hook::ReleaseEnter);
        assert!(Hook::Release < Hook::AllocateEnter && Hook::Replace < Hook::Allocate);
        assert_eq!(Hook::of(Function::Sbrk, Purpose::Trace, true), [Hook::Allocate]);
        assert_eq!(Hook::of(Function::Malloc, Purpose::Count, true), [Hook::Count]);
    }

    #[test]
    fn a_part_is_measured_at_entries_alone() {
        for has_sessions in [false, true] {
            let of = |function, part| Hook::of(function, Purpose::Measure(part), has_sessions);
            assert_eq!(of(Function::Malloc, Part::Entries), [Hook::EmptyEnter]);
            assert_eq!(of(Function::Malloc, Part::GetStack), [Hook::GetStackEnter]);
            assert_eq!(of(Function::OperatorNew, Part::Stack), [Hook::StackEnter]);
            for function in [Function::Free, Function::Realloc, Function::CxaThrow, Function::Mmap] {
                assert_eq!(of(function, Part::Stack), [Hook::EmptyEnter]);
            }
        }
    }
}
