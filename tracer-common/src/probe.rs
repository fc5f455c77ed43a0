//! The functions that memtrace probes, and the attach cookie that tells the kernel side how to read a call.

/// Where a size argument is, and what the call does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Returns a new block.
    Allocate {
        /// Argument that holds the size in bytes.
        size: u8,
        /// Argument that it is multiplied with (`calloc`).
        count: Option<u8>,
        /// Where the address comes out.
        result: ResultIn,
    },
    /// Gives back the block in argument 0.
    Release,
    /// Gives back the block in argument 0 for another of a new size, or fails and leaves it.
    Resize {
        /// Argument that holds the new size in bytes.
        size: u8,
        /// Argument that it is multiplied with (`reallocarray`).
        count: Option<u8>,
    },
    /// `mmap`: a mapping of argument 1 bytes; only anonymous ones count.
    Map,
    /// `munmap`: argument 1 bytes at argument 0.
    Unmap,
    /// `mremap`: argument 1 bytes at argument 0 become argument 2 bytes.
    Remap,
    /// `xallocx`: the block in argument 0 is to have the size in argument 1 where it is; the result is
    /// the size that it has then.
    ResizeInPlace,
    /// `sbrk`: the program break moves by argument 0.
    MoveBreak,
    /// `brk`: the program break becomes argument 0.
    SetBreak,
    /// `__cxa_throw`: leaves the calls that the thread is in without their returning.
    Throw,
    /// No call: at an instruction of pymalloc a block has been taken from its pool. See [`BlockPlace`].
    TakeFromPool,
    /// No call: at an instruction of pymalloc a block has been put back into its pool.
    PutIntoPool,
    /// No call: the allocator tells of a block that it has chosen as a sample ([`crate::usdt`]): its address, its
    /// size, and for how many allocated bytes it stands.
    TellSample,
    /// No call: the allocator tells that such a block is given back.
    TellSampleGone,
}

/// Where an allocating function puts the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultIn {
    /// The return value; null is failure.
    ReturnValue,
    /// The pointer that argument 0 points to; a return value other than 0 is failure (`posix_memalign`).
    OutPointer,
}

/// Which allocator the program asked.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// The C library's heap, or what stands in for it.
    Malloc,
    /// Anonymous mappings made by the program itself.
    Mmap,
    /// `PyMem_Raw*`
    PyRaw,
    /// `PyMem_*`
    PyMem,
    /// `PyObject_*`
    PyObject,
}

impl Domain {
    /// Every domain.
    pub const ALL: [Self; 5] = [Self::Malloc, Self::Mmap, Self::PyRaw, Self::PyMem, Self::PyObject];

    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Mmap => "mmap",
            Self::PyRaw => "py-raw",
            Self::PyMem => "py-mem",
            Self::PyObject => "py-object",
        }
    }
}

const fn plain(size: u8) -> Action {
    Action::Allocate { size, count: None, result: ResultIn::ReturnValue }
}

const fn product(count: u8, size: u8) -> Action {
    Action::Allocate { size, count: Some(count), result: ResultIn::ReturnValue }
}

macro_rules! functions {
    ($($name:ident $symbol:literal $domain:ident $action:expr;)+) => {
        /// A probed function. The number is part of the wire and recording formats: append only.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Function {
            /// No function: the first number is kept free.
            None = 0,
            $(#[doc = concat!("`", $symbol, "`")] $name,)+
        }

        impl Function {
            /// Every probed function, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The symbol's name.
            pub const fn symbol(self) -> &'static str {
                match self { Self::None => "", $(Self::$name => $symbol,)+ }
            }

            /// The domain that a caller of this function asks.
            pub const fn domain(self) -> Domain {
                match self { Self::None => Domain::Malloc, $(Self::$name => Domain::$domain,)+ }
            }

            /// What the call does, and where its arguments are.
            pub const fn action(self) -> Action {
                match self { Self::None => Action::Release, $(Self::$name => $action,)+ }
            }
        }
    };
}

functions! {
    Malloc "malloc" Malloc plain(0);
    Calloc "calloc" Malloc product(0, 1);
    Realloc "realloc" Malloc Action::Resize { size: 1, count: None };
    Reallocarray "reallocarray" Malloc Action::Resize { size: 2, count: Some(1) };
    Free "free" Malloc Action::Release;
    PosixMemalign "posix_memalign" Malloc Action::Allocate { size: 2, count: None, result: ResultIn::OutPointer };
    AlignedAlloc "aligned_alloc" Malloc plain(1);
    Memalign "memalign" Malloc plain(1);
    Valloc "valloc" Malloc plain(0);
    Pvalloc "pvalloc" Malloc plain(0);
    Mmap "mmap" Mmap Action::Map;
    Munmap "munmap" Mmap Action::Unmap;
    Mremap "mremap" Mmap Action::Remap;
    PyMemRawMalloc "PyMem_RawMalloc" PyRaw plain(0);
    PyMemRawCalloc "PyMem_RawCalloc" PyRaw product(0, 1);
    PyMemRawRealloc "PyMem_RawRealloc" PyRaw Action::Resize { size: 1, count: None };
    PyMemRawFree "PyMem_RawFree" PyRaw Action::Release;
    PyMemMalloc "PyMem_Malloc" PyMem plain(0);
    PyMemCalloc "PyMem_Calloc" PyMem product(0, 1);
    PyMemRealloc "PyMem_Realloc" PyMem Action::Resize { size: 1, count: None };
    PyMemFree "PyMem_Free" PyMem Action::Release;
    PyObjectMalloc "PyObject_Malloc" PyObject plain(0);
    PyObjectCalloc "PyObject_Calloc" PyObject product(0, 1);
    PyObjectRealloc "PyObject_Realloc" PyObject Action::Resize { size: 1, count: None };
    PyObjectFree "PyObject_Free" PyObject Action::Release;
    Mallocx "mallocx" Malloc plain(0);
    Rallocx "rallocx" Malloc Action::Resize { size: 1, count: None };
    Xallocx "xallocx" Malloc Action::ResizeInPlace;
    Dallocx "dallocx" Malloc Action::Release;
    Sdallocx "sdallocx" Malloc Action::Release;
    FreeSized "free_sized" Malloc Action::Release;
    FreeAlignedSized "free_aligned_sized" Malloc Action::Release;
    OperatorNew "_Znwm" Malloc plain(0);
    OperatorDelete "_ZdlPv" Malloc Action::Release;
    Sbrk "sbrk" Mmap Action::MoveBreak;
    Brk "brk" Mmap Action::SetBreak;
    CxaThrow "__cxa_throw" Malloc Action::Throw;
    PymallocPop "pymalloc pop" PyObject Action::TakeFromPool;
    PymallocFresh "pymalloc fresh pool" PyObject Action::TakeFromPool;
    PymallocPush "pymalloc push" PyObject Action::PutIntoPool;
    OtelAlloc "otel_memory:alloc" Malloc Action::TellSample;
    OtelFree "otel_memory:free" Malloc Action::TellSampleGone;
}

impl Function {
    /// The function with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Whether an allocator tells by it of blocks that it has chosen itself, and of these alone.
    pub const fn tells_samples(self) -> bool {
        matches!(self, Self::OtelAlloc | Self::OtelFree)
    }

    /// Whether its probes stay in place, and count, also where others are there for a while only: it is reached
    /// seldom.
    pub fn stays(self) -> bool {
        self.domain() == Domain::Mmap || self.tells_samples()
    }

    /// How the end of a call is seen.
    ///
    /// A return probe puts another return address in place of the caller's, and a C++ exception that
    /// passes it ends the process; so a function that may throw is probed at its `ret` instructions. The C
    /// library's `free` calls no traced function that counts (the memory that it unmaps was mapped inside
    /// an allocating call), and its end does not matter.
    pub const fn ending(self) -> Ending {
        match self {
            Self::Free | Self::CxaThrow => Ending::Unseen,
            Self::PymallocPop | Self::PymallocFresh | Self::PymallocPush => Ending::Unseen,
            Self::OtelAlloc | Self::OtelFree => Ending::Unseen,
            Self::OperatorNew => Ending::AtRet,
            _ => Ending::ReturnProbe,
        }
    }
}

/// How the end of a call is seen: to learn its result, or until when the traced functions that it calls
/// belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is not.
    Unseen,
    /// By a return probe.
    ReturnProbe,
    /// By probes on the `ret` instructions.
    AtRet,
}

/// Where the address of a block is at an instruction in the midst of pymalloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockPlace {
    /// The register, by its number in machine code: 0 = `rax`, 4 = `rsp`, 15 = `r15`.
    pub register: u8,
    /// What is to be added to it, bytes; at most [`BlockPlace::MAX_OFFSET`].
    pub offset: u16,
    /// Whether the sum is where the address lies in memory, not the address itself.
    pub is_read: bool,
    /// Whether pools have 16 KiB (CPython 3.10 on), not 4.
    pub pools_are_large: bool,
}

impl BlockPlace {
    /// Largest offset that a cookie has room for.
    pub const MAX_OFFSET: u16 = (1 << 12) - 1;

    /// Bytes of a pool.
    pub const fn pool_bytes(self) -> u64 {
        if self.pools_are_large { 16 << 10 } else { 4 << 10 }
    }
}

const NO_ARGUMENT: u64 = 15;

/// Bits of a cookie that tell of a [`BlockPlace`].
const BLOCK_BITS: u64 = (1 << 18) - 1;

/// How the kernel side reads one probe site: the 64 bits that the kernel hands back at each hit.
///
/// | bits | meaning |
/// |---|---|
/// | 0-7 | [`Function`] as a number |
/// | 8-23 | index of the target |
/// | 24-27 | argument with the size; 15 = none |
/// | 28-31 | argument to multiply with; 15 = none |
/// | 32 | the address comes out through argument 0 |
/// | 33 | failure is `MAP_FAILED`, not null; only anonymous mappings count |
/// | 34 | argument 1 is the length of the old memory |
/// | 35 | the address of the old memory is an argument: 0, or as bit 59 tells |
/// | 36 | the end of the call is seen |
/// | 37 | the function may throw: it has no return probe, its end is seen at its `ret` instructions |
/// | 38 | the block stays where it is; the result is its new size |
/// | 39 | argument 0 is the new program break, not by how much it moves |
/// | 40 | the program break moves |
/// | 41-58 | for a [`BlockPlace`]: register (4 bits), offset (12 bits), whether to read there, whether pools are large; for a USDT probe the number of its [`crate::usdt::Arguments`] (16 bits) |
/// | 59 | argument 0 is a context, and all others come one later: the old memory is argument 1 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The cookie of a probe that sits on none of the functions, in the target with index `target`.
    pub const fn of_target(target: u16) -> Self {
        Self((target as u64) << 8)
    }

    /// The cookie of a probe that counts its hits in the cell with this number, below
    /// [`crate::config::COUNTERS_OF_HITS`].
    pub const fn of_counter(cell: u16) -> Self {
        Self::of_target(cell)
    }

    /// The cookie of `function` in the target with index `target`.
    pub const fn new(function: Function, target: u16) -> Self {
        let (size, count, flags) = match function.action() {
            Action::Allocate { size, count, result } => (
                size as u64,
                count,
                match result {
                    ResultIn::OutPointer => 1,
                    ResultIn::ReturnValue => 0,
                },
            ),
            Action::Release => (NO_ARGUMENT, None, 0b1000),
            Action::Resize { size, count } => (size as u64, count, 0b1000),
            Action::Map => (1, None, 0b0010),
            Action::Unmap => (NO_ARGUMENT, None, 0b1110),
            Action::Remap => (2, None, 0b1110),
            Action::ResizeInPlace => (1, None, 0b100_1000),
            Action::MoveBreak => (0, None, 0b1_0000_0010),
            Action::SetBreak => (0, None, 0b1_1000_0010),
            Action::Throw
            | Action::TakeFromPool
            | Action::PutIntoPool
            | Action::TellSample
            | Action::TellSampleGone => (NO_ARGUMENT, None, 0),
        };
        let count = match count {
            Some(count) => count as u64,
            None => NO_ARGUMENT,
        };
        let ending = match function.ending() {
            Ending::Unseen => 0,
            Ending::ReturnProbe => 0b01,
            Ending::AtRet => 0b11,
        };
        Self(function as u64 | (target as u64) << 8 | size << 24 | count << 28 | flags << 32 | ending << 36)
    }

    /// The same of a site at which the address of a block is at `place`.
    pub const fn with_block(self, place: BlockPlace) -> Self {
        let bits = (place.register & 15) as u64
            | ((place.offset & BlockPlace::MAX_OFFSET) as u64) << 4
            | (place.is_read as u64) << 16
            | (place.pools_are_large as u64) << 17;
        Self(self.0 & !(BLOCK_BITS << 41) | (bits << 41))
    }

    /// The same of a function that takes a context before the arguments that the table of functions tells of, as
    /// those do that CPython's allocator tables point to (`PyMemAllocatorEx`, `Include/cpython/pymem.h`, 3.8 to
    /// 3.15). None of them maps memory or returns a block through a pointer.
    pub const fn with_context(self) -> Self {
        let size = later(self.0 >> 24);
        let count = later(self.0 >> 28);
        Self(self.0 & !(0xff << 24) | (size << 24) | (count << 28) | (1 << 59))
    }

    /// Where the address of the block is.
    pub const fn block(self) -> BlockPlace {
        let bits = self.0 >> 41;
        BlockPlace {
            register: bits as u8 & 15,
            offset: (bits >> 4) as u16 & BlockPlace::MAX_OFFSET,
            is_read: bits >> 16 & 1 != 0,
            pools_are_large: bits >> 17 & 1 != 0,
        }
    }

    /// The same of a USDT probe whose [`crate::usdt::Arguments`] have this number.
    pub const fn with_arguments(self, number: u16) -> Self {
        Self(self.0 & !(BLOCK_BITS << 41) | ((number as u64) << 41))
    }

    /// The number of the [`crate::usdt::Arguments`].
    pub const fn arguments(self) -> u16 {
        (self.0 >> 41) as u16
    }

    /// The function's number.
    pub const fn function(self) -> u8 {
        self.0 as u8
    }

    /// Index of the target.
    pub const fn target(self) -> u16 {
        (self.0 >> 8) as u16
    }

    /// The argument that holds the size.
    pub const fn size_argument(self) -> Option<u8> {
        argument(self.0 >> 24)
    }

    /// The argument to multiply the size with.
    pub const fn count_argument(self) -> Option<u8> {
        argument(self.0 >> 28)
    }

    /// Whether the address comes out through argument 0.
    pub const fn out_pointer(self) -> bool {
        self.0 >> 32 & 1 != 0
    }

    /// Whether this is a mapping function: failure is `MAP_FAILED`.
    pub const fn is_mapping(self) -> bool {
        self.0 >> 33 & 1 != 0
    }

    /// Whether argument 1 is the length of the old memory.
    pub const fn has_old_length(self) -> bool {
        self.0 >> 34 & 1 != 0
    }

    /// Whether an argument is the old memory: [`Cookie::old_argument`].
    pub const fn has_old(self) -> bool {
        self.0 >> 35 & 1 != 0
    }

    /// The argument that is the old memory, where one is.
    pub const fn old_argument(self) -> u8 {
        (self.0 >> 59 & 1) as u8
    }

    /// Whether the end of the call is seen.
    pub const fn has_end(self) -> bool {
        self.0 >> 36 & 1 != 0
    }

    /// Whether the function may throw, and its end is seen at its `ret` instructions.
    pub const fn may_throw(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// Whether the block stays where it is, and the result is its new size.
    pub const fn in_place(self) -> bool {
        self.0 >> 38 & 1 != 0
    }

    /// Whether the program break moves.
    pub const fn moves_break(self) -> bool {
        self.0 >> 40 & 1 != 0
    }

    /// Whether argument 0 is the new program break itself.
    pub const fn sets_break(self) -> bool {
        self.0 >> 39 & 1 != 0
    }
}

/// The number of the argument behind this one; none where there is none.
const fn later(shifted: u64) -> u64 {
    match shifted & 15 {
        NO_ARGUMENT => NO_ARGUMENT,
        number => number + 1,
    }
}

const fn argument(shifted: u64) -> Option<u8> {
    match shifted & 15 {
        NO_ARGUMENT => None,
        number => Some(number as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_round_trip() {
        for (index, function) in Function::ALL.iter().enumerate() {
            assert_eq!(*function as usize, index + 1);
            assert_eq!(Function::from_number(*function as u8), Some(*function));
        }
        assert_eq!(Function::from_number(0), None);
        assert_eq!(Function::from_number(200), None);
    }

    #[test]
    fn a_cookie_says_what_the_table_says() {
        for function in Function::ALL {
            let cookie = Cookie::new(*function, 513);
            assert_eq!(cookie.function(), *function as u8);
            assert_eq!(cookie.target(), 513);
            let (size, count) = match function.action() {
                Action::Allocate { size, count, .. } | Action::Resize { size, count } => (Some(size), count),
                Action::Map => (Some(1), None),
                Action::Remap => (Some(2), None),
                Action::Release | Action::Unmap | Action::Throw => (None, None),
                Action::TakeFromPool | Action::PutIntoPool => (None, None),
                Action::TellSample | Action::TellSampleGone => (None, None),
                Action::ResizeInPlace => (Some(1), None),
                Action::MoveBreak | Action::SetBreak => (Some(0), None),
            };
            assert_eq!((cookie.size_argument(), cookie.count_argument()), (size, count), "{function:?}");
            let old = matches!(
                function.action(),
                Action::Release
                    | Action::Resize { .. }
                    | Action::ResizeInPlace
                    | Action::Unmap
                    | Action::Remap
            );
            assert_eq!(cookie.has_old(), old);
            assert_eq!(cookie.is_mapping(), function.domain() == Domain::Mmap);
            assert_eq!(cookie.has_old_length(), matches!(function.action(), Action::Unmap | Action::Remap));
            assert_eq!(cookie.out_pointer(), *function == Function::PosixMemalign);
            let is_in_pool = matches!(function.action(), Action::TakeFromPool | Action::PutIntoPool);
            assert_eq!(
                cookie.has_end(),
                !is_in_pool
                    && !function.tells_samples()
                    && !matches!(function, Function::Free | Function::CxaThrow)
            );
            assert_eq!(cookie.may_throw(), *function == Function::OperatorNew);
            assert_eq!(cookie.in_place(), *function == Function::Xallocx);
            assert_eq!(cookie.sets_break(), *function == Function::Brk);
            assert_eq!(cookie.moves_break(), matches!(function, Function::Brk | Function::Sbrk));
        }
    }

    #[test]
    fn a_cookie_tells_where_a_block_is() {
        for (register, offset) in [(0, 0), (4, 0xff8), (15, BlockPlace::MAX_OFFSET)] {
            for (is_read, pools_are_large) in [(false, true), (true, false), (true, true)] {
                let place = BlockPlace { register, offset, is_read, pools_are_large };
                let cookie = Cookie::new(Function::PymallocPush, u16::MAX).with_block(place);
                assert_eq!(cookie.block(), place);
                assert_eq!(cookie.function(), Function::PymallocPush as u8);
                assert_eq!(cookie.target(), u16::MAX);
                assert!(!cookie.has_end() && !cookie.moves_break());
            }
        }
    }

    #[test]
    fn a_cookie_tells_where_arguments_are() {
        for number in [0, 1, 255, u16::MAX] {
            let cookie = Cookie::new(Function::OtelAlloc, u16::MAX).with_arguments(number);
            assert_eq!(cookie.arguments(), number);
            assert_eq!((cookie.function(), cookie.target()), (Function::OtelAlloc as u8, u16::MAX));
            assert!(!cookie.has_end() && !cookie.moves_break() && cookie.old_argument() == 0);
        }
    }

    #[test]
    fn a_context_moves_all_arguments_by_one() {
        let told = |function| {
            let (plain, moved) = (Cookie::new(function, 513), Cookie::new(function, 513).with_context());
            assert_eq!((plain.old_argument(), moved.old_argument()), (0, 1));
            assert_eq!((moved.function(), moved.target()), (function as u8, 513));
            assert_eq!(
                (moved.has_old(), moved.has_end()),
                (plain.has_old(), plain.has_end()),
                "{function:?}"
            );
            assert!(!moved.is_mapping() && !moved.out_pointer() && !moved.moves_break() && !moved.in_place());
            (moved.size_argument(), moved.count_argument())
        };
        assert_eq!(told(Function::PyObjectMalloc), (Some(1), None));
        assert_eq!(told(Function::PyObjectCalloc), (Some(2), Some(1)));
        assert_eq!(told(Function::PyObjectRealloc), (Some(2), None));
        assert_eq!(told(Function::PyObjectFree), (None, None));
        // A place of a block is told beside it.
        let place = BlockPlace { register: 15, offset: 0xfff, is_read: true, pools_are_large: true };
        let both = Cookie::new(Function::PyObjectFree, 7).with_context().with_block(place);
        assert_eq!((both.old_argument(), both.block()), (1, place));
        assert_eq!(Cookie::new(Function::PyObjectFree, 7).with_block(place).old_argument(), 0);
    }
}
