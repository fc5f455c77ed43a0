//! The records that travel over the ring buffer, as the kernel side writes them.
//!
//! Each record starts with a [`Header`]; its `kind` fixes the layout. All fields are little endian and
//! naturally aligned, so that the kernel side writes plain structs. [`crate::record`] reads them.

/// Most frames in one stack.
pub const MAX_FRAMES: usize = 192;

/// The id of "no stack": it could not be taken, or was lost.
pub const NO_STACK: u64 = 0;

/// Layout of a record. The discriminants are the wire format and the recording format.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`AllocateRecord`]
    Allocate = 1,
    /// [`ReleaseRecord`]
    Release = 2,
    /// [`ReplaceBeginRecord`]
    ReplaceBegin = 3,
    /// [`ReplaceEndRecord`]
    ReplaceEnd = 4,
    /// [`StackRecord`]
    Stack = 5,
    /// [`Header`] alone: the target called `exec`, its memory is gone.
    Exec = 6,
    /// [`Header`] alone: the target forked a process that has a copy of its memory.
    Fork = 7,
    /// [`DoubtRecord`], by user space.
    Doubt = 8,
    /// [`crate::code::CodeHeader`] and what lies behind it.
    Code = 9,
    /// [`ContentRecord`], by user space.
    Content = 10,
    /// [`WindowRecord`], by user space.
    Window = 11,
    /// [`SampledRecord`]
    Sampled = 12,
    /// [`PageFaultRecord`]
    PageFault = 13,
    /// [`ResidenceRecord`], by user space.
    Residence = 14,
}

/// First 16 bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u8,
    /// The probed function, an [`crate::probe::Function`] as a number; 0 where there is none.
    pub function: u8,
    /// Index of the target in this session.
    pub target: u16,
    /// Thread that made the call, in the initial PID namespace.
    pub tid: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
}

/// A block was handed to the program. Stamped when the function returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocateRecord {
    /// Common part.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
}

/// A block is about to be given back. Stamped at entry, while the caller still owns the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReleaseRecord {
    /// Common part.
    pub header: Header,
    /// Address of the block; never null.
    pub addr: u64,
}

/// `realloc`, `mremap` or `munmap` was entered: whether the old memory goes is known at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplaceBeginRecord {
    /// Common part.
    pub header: Header,
    /// Old address; never null.
    pub addr: u64,
    /// Old length in bytes; 0 for a heap block, whose length the allocator knows.
    pub length_bytes: u64,
}

/// The call that the last [`ReplaceBeginRecord`] of this thread began has returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplaceEndRecord {
    /// Common part.
    pub header: Header,
    /// The new address, 0 where there is none (a failure, `realloc(p, 0)`, `munmap`).
    pub addr: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
    /// The old address when that memory is gone, 0 when there was none or the call failed and it stays.
    pub released_addr: u64,
}

/// The free of the block at this address may have been lost: nobody can say whether it is outstanding. Made
/// by user space from the marks in [`crate::lost`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoubtRecord {
    /// Common part; the function is the one that allocated.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
}

/// What was found in the block at this address, and what its allocator says of it. Made by user space, which
/// looks before it reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRecord {
    /// Common part. What was allocated later is another block.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
    /// [`ContentRecord::FREE`], or a number that user space gave to what is in the block.
    pub content: u64,
}

impl ContentRecord {
    /// Nobody has looked.
    pub const UNKNOWN: u16 = 0;
    /// The allocator holds the block as free: its free was missed.
    pub const FREE: u16 = u16::MAX;
}

/// Heap allocations that come behind it, up to the next of its kind, were seen in one window of a sampled trace, or
/// in a phase in which every call is traced. Made by user space. Mappings are traced always, whatever it says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowRecord {
    /// Common part: when the window opened, and the target that it is of.
    pub header: Header,
    /// When it closed, `CLOCK_MONOTONIC` nanoseconds; [`WindowRecord::OPEN`] where that is not known.
    pub closed_ns: u64,
    /// The bits of an `f64`: for how many allocations each stands that was seen. Exactly 1 says that from here on
    /// everything is traced.
    pub weight_bits: u64,
}

impl WindowRecord {
    /// In [`Self::closed_ns`]: it has not closed.
    pub const OPEN: u64 = u64::MAX;

    /// For how many allocations each stands that was seen.
    pub const fn weight(&self) -> f64 {
        f64::from_bits(self.weight_bits)
    }

    /// Whether the weight is one: a finite number, and no less than 1.
    pub const fn has_weight(&self) -> bool {
        let weight = self.weight();
        weight.is_finite() && weight >= 1.0
    }
}

/// An allocator that samples its own allocations has handed out a block that it chose. It tells when that is given
/// back, whatever else is traced: by a [`ReleaseRecord`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampledRecord {
    /// Common part.
    pub header: Header,
    /// Address of the block.
    pub addr: u64,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
    /// For how many allocated bytes it stands, as the allocator says.
    pub weight_bytes: u64,
}

impl SampledRecord {
    /// For how many allocations of its size it stands: itself at least.
    pub fn weight(&self) -> f64 {
        (self.weight_bytes as f64 / self.size_bytes.max(1) as f64).max(1.0)
    }
}

/// A page of the target was brought in because the target, or the kernel for it, touched it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFaultRecord {
    /// Common part.
    pub header: Header,
    /// The address that was touched.
    pub addr: u64,
    /// Id of the stack, or [`NO_STACK`].
    pub stack: u64,
    /// The limit that was in force: pages were traced whose [`lot`](crate::page::lot) is below it. Never 0.
    pub limit: u64,
}

/// What the kernel says of a page whose fault was told. Made by user space, which looks before it reports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidenceRecord {
    /// Common part. What was faulted in later is another page.
    pub header: Header,
    /// Address of the page, or [`ResidenceRecord::ALL`].
    pub addr: u64,
    /// Bytes that are there because of that fault: 0 where the page is gone, more than a page where it was a huge
    /// one. With [`ResidenceRecord::ALL`]: the limit that was in force by then, 0 where it is not known what is there.
    pub bytes: u64,
}

impl ResidenceRecord {
    /// In place of an address: all pages were looked at, and those that no record tells of are there.
    pub const ALL: u64 = u64::MAX;
}

/// What the program asked for when a stack was taken, as the call tells; the discriminants are the format of
/// recordings.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Asked {
    /// The call does not tell more than the probe.
    #[default]
    Unknown = 0,
    /// A block of `PyMem_Raw*`.
    PyRaw = 1,
    /// A block of `PyMem_*`.
    PyMem = 2,
    /// A block of `PyObject_*`.
    PyObject = 3,
    /// Nothing: pymalloc made the heap grow by an arena.
    Arena = 4,
    /// CPython itself asked the C library: for `PyMem_Raw*`, or for what is too large for a pool. Which it was,
    /// the compiler has hidden.
    Interpreter = 5,
}

impl Asked {
    /// What is named by a number in a record.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Unknown,
            1 => Self::PyRaw,
            2 => Self::PyMem,
            3 => Self::PyObject,
            4 => Self::Arena,
            5 => Self::Interpreter,
            _ => return None,
        })
    }
}

/// How a walk ended; the discriminants are the wire format.
#[repr(u16)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WalkEnd {
    /// The outermost frame was reached.
    #[default]
    Complete = 0,
    /// [`MAX_FRAMES`] frames were taken and there were more.
    TooDeep = 1,
    /// No unwind information for the return address.
    NoUnwindInfo = 2,
    /// The unwind information there has a form that is not supported.
    Unsupported = 3,
    /// The stack could not be read.
    Unreadable = 4,
    /// The unwind information led to no frame further out: it is wrong, or the stack is damaged.
    Astray = 5,
    /// The outermost frame was reached, but not every Python frame has its place: they come last.
    PythonUnplaced = 6,
    /// The outermost frame was reached, but some Python frames could not be read.
    PythonUnreadable = 7,
}

impl WalkEnd {
    /// The end named by a number on the wire.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Complete,
            1 => Self::TooDeep,
            2 => Self::NoUnwindInfo,
            3 => Self::Unsupported,
            4 => Self::Unreadable,
            5 => Self::Astray,
            6 => Self::PythonUnplaced,
            7 => Self::PythonUnreadable,
            _ => return None,
        })
    }
}

/// Frames of one stack, innermost first. `frames[..count]` holds them, each as [`crate::frame`] says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Number of frames.
    pub count: u16,
    /// In the kernel's map: 1 once a record of it is in the ring. In a record 0; user space puts an [`Asked`]
    /// there.
    pub is_sent: u8,
    /// How often the target had called `exec`, modulo 256: stacks of an image are sent for that image.
    pub image: u8,
    /// A [`WalkEnd`].
    pub end: u16,
    /// Index of the target: the same addresses mean something else in another process.
    pub target: u16,
    /// All the [`check`](crate::code::CodeHeader::check)s of the Python frames folded into one: the same addresses
    /// are another stack when other code objects lie there.
    pub codes: u64,
    /// `frames[0]` is the return address into the allocator's caller.
    pub frames: [u64; MAX_FRAMES],
}

/// The id of a stack of `target` and its `image`, from a hash of its frames: these two are in the upper 24
/// bits.
#[inline(always)]
pub const fn stack_id(target: u16, image: u8, hash: u64) -> u64 {
    hash & ((1 << 40) - 1) | (image as u64) << 40 | (target as u64) << 48
}

/// Whether the stack with this id is of `target` and of an image before `image`. Numbers of images come round
/// again: the 127 behind `image` are later ones.
pub const fn stack_is_of_earlier_image(id: u64, target: u16, image: u8) -> bool {
    let images_ago = image.wrapping_sub((id >> 40) as u8);
    (id >> 48) as u16 == target && images_ago > 0 && images_ago <= 128
}

/// A stack that was not seen before. On the wire only `frames[..count]` is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// Common part.
    pub header: Header,
    /// Identifies the stack in this session; never [`NO_STACK`].
    pub id: u64,
    /// The frames.
    pub stack: Stack,
}

/// Bytes of a [`StackRecord`] before its frames.
pub const STACK_RECORD_FIXED_BYTES: usize = size_of::<Header>() + 8 + 8 + 8;

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<AllocateRecord>() == 40);
    assert!(size_of::<ReleaseRecord>() == 24);
    assert!(size_of::<ReplaceBeginRecord>() == 32);
    assert!(size_of::<ReplaceEndRecord>() == 48);
    assert!(size_of::<DoubtRecord>() == 24);
    assert!(size_of::<ContentRecord>() == 32);
    assert!(size_of::<WindowRecord>() == 32);
    assert!(size_of::<SampledRecord>() == 48);
    assert!(size_of::<PageFaultRecord>() == 40);
    assert!(size_of::<ResidenceRecord>() == 32);
    assert!(size_of::<StackRecord>() == STACK_RECORD_FIXED_BYTES + MAX_FRAMES * 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_stack_tells_its_target_and_image() {
        let id = stack_id(0xabcd, 0xef, 0x1234_5678_9abc_def0);
        assert_eq!(id, 0xabcd_ef78_9abc_def0);
        let is_over = |target, image| stack_is_of_earlier_image(id, target, image);
        assert!(is_over(0xabcd, 0xf0) && is_over(0xabcd, 0) && is_over(0xabcd, 0x6f));
        assert!(!is_over(0xabcd, 0xef) && !is_over(0xabcd, 0xee) && !is_over(0xabcd, 0x70));
        assert!(!is_over(0xabcc, 0xf0));
    }
}
