//! What of an interpreter the walk must know: where it keeps what, as plain numbers.

/// How an interpreter links its frames and marks its runs: see [`crate::python`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// 3.8 and 3.9: no marks; `f_lasti` in bytes.
    Plain = 1,
    /// 3.10: a `CFrame` for each frame; `f_lasti` in code units.
    CFrame = 2,
    /// 3.11: a `CFrame` for each run, which ends with the frame that `is_entry`.
    EntryMark = 3,
    /// 3.12 on: a shim frame behind each run.
    Shim = 4,
}

/// How the C library stores what `pthread_getspecific` gives.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadStorage {
    /// glibc: `{sequence, value}` by key from `storage_offset` on, in blocks of 32 keys; behind the first
    /// block are pointers to the others.
    Glibc = 1,
    /// musl: at `storage_offset` a pointer to the values.
    Musl = 2,
}

/// A range of addresses of code, first and first behind; both 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PcRange {
    /// First address.
    pub start_addr: u64,
    /// First address behind it.
    pub end_addr: u64,
}

/// All that the walk must know of one interpreter in one process. User space makes it.
///
/// Offsets are in bytes from the start of the struct, those of [`FrameLayout`] and [`CodeLayout`] from the
/// first byte that is read of it. Words are read aligned, so that no field of up to 8 bytes straddles two.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PythonLayout {
    /// Address of `_PyRuntime.autoTSSkey`, `{int is_initialized; int key}`; 0 where there is none, 3.15 on.
    pub tss_key_addr: u64,
    /// Address of `_PyRuntime.gilstate.tstate_current`, 3.8 to 3.11; 0 where there is none.
    pub current_thread_addr: u64,
    /// Address of `_PyRuntime.interpreters.head`, behind which `main` lies.
    pub interpreters_addr: u64,
    /// Address of `PyCode_Type`; 0 where it is not known, and code objects are believed to be ones.
    pub code_type_addr: u64,
    /// Distance from the thread's pointer to itself to the variable `_Py_tss_tstate`, 3.12 on; 0 where it is
    /// not known.
    pub attached_tls_offset: i64,
    /// The same for `_Py_tss_gilstate`, 3.15 on.
    pub stored_tls_offset: i64,
    /// Where `_PyEval_EvalFrameDefault` lies, for the versions without marks.
    pub eval: [PcRange; 4],
    /// Of threads and interpreters.
    pub thread: ThreadLayout,
    /// Of frames.
    pub frame: FrameLayout,
    /// Of code objects.
    pub code: CodeLayout,
    /// Of texts and bytes.
    pub text: TextLayout,
    /// Where thread specific data lies, from the thread's pointer to itself.
    pub storage_offset: u16,
    /// A [`ThreadStorage`].
    pub storage: u8,
    /// A [`Flavor`].
    pub flavor: u8,
    /// 11 in 3.11.
    pub minor: u8,
    /// 1 for a build without the global lock.
    pub is_free_threaded: u8,
    /// 1 where the kernel side is told when a code object goes.
    pub tells_code_deaths: u8,
    /// 0
    pub reserved: u8,
}

/// Offsets in `PyThreadState` and `PyInterpreterState`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ThreadLayout {
    /// `PyThreadState.next`
    pub next: u16,
    /// `frame` (3.8 to 3.10), `cframe` (3.11, 3.12) or `current_frame`.
    pub frame: u16,
    /// `cframe` where it stands beside `frame`, 3.10.
    pub c_frame: u16,
    /// `CFrame.current_frame`, 3.11 and 3.12; [`ThreadLayout::NO_C_FRAME`] where frames hang on the thread
    /// state itself.
    pub c_frame_current: u16,
    /// `thread_id`: what `pthread_self` gives, which is the thread's pointer to itself.
    pub thread_id: u16,
    /// `PyInterpreterState.next`
    pub interpreter_next: u16,
    /// `PyInterpreterState.threads.head`
    pub interpreter_threads: u16,
    /// `base_frame`, which looks like a shim but is none, 3.15 on; 0 where there is none.
    pub base_frame: u16,
}

impl ThreadLayout {
    /// Frames hang on the thread state itself.
    pub const NO_C_FRAME: u16 = u16::MAX;
}

/// Offsets in `PyFrameObject` (up to 3.10) or `_PyInterpreterFrame`, from `read_from` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameLayout {
    /// Offset in the struct of the first byte that is read.
    pub read_from: u16,
    /// How many words are read, fewer than 16.
    pub read_words: u16,
    /// The caller's frame.
    pub previous: u16,
    /// The code object.
    pub code: u16,
    /// `f_lasti`, or the pointer to the instruction.
    pub instruction: u16,
    /// `owner`, 3.11 on.
    pub owner: u16,
    /// `is_entry`, 3.11.
    pub is_entry: u16,
    /// `tlbc_index`, where code objects have a `tlbc`.
    pub tlbc_index: u16,
    /// `CFrame.previous`, 3.10 and 3.11.
    pub c_frame_previous: u16,
    /// The owner of a shim frame; frames of higher ones are no Python frames either.
    pub shim_owner: u8,
    /// 0
    pub reserved: u8,
}

/// Offsets in `PyCodeObject`, from `read_from` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CodeLayout {
    /// Offset in the struct of the first byte that is read.
    pub read_from: u16,
    /// How many words are read, fewer than 32.
    pub read_words: u16,
    /// `ob_type`
    pub ob_type: u16,
    /// `ob_size`, the number of code units, 3.11 on.
    pub units: u16,
    /// `co_argcount`
    pub argcount: u16,
    /// `co_kwonlyargcount`
    pub kwonlyargcount: u16,
    /// `co_flags`
    pub flags: u16,
    /// `co_firstlineno`
    pub first_line: u16,
    /// `co_filename`
    pub file: u16,
    /// `co_qualname` where the version has it, else `co_name`.
    pub name: u16,
    /// `co_linetable`, before 3.10 `co_lnotab`.
    pub table: u16,
    /// `_co_firsttraceable`, 3.11 on.
    pub first_traceable: u16,
    /// `co_version`, which is another for each code object; 0 before 3.12.
    pub version: u16,
    /// `co_tlbc`; 0 where the build has none.
    pub tlbc: u16,
    /// `co_code_adaptive`, 3.11 on: from the start of the struct, since it is not read.
    pub bytecode: u16,
}

/// Offsets in `PyASCIIObject`, `PyCompactUnicodeObject` and `PyBytesObject`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TextLayout {
    /// `length`
    pub length: u16,
    /// `state`
    pub state: u16,
    /// First byte of a text whose characters are all ASCII.
    pub ascii_data: u16,
    /// First byte of another.
    pub compact_data: u16,
    /// `PyBytesObject.ob_size`
    pub bytes_size: u16,
    /// `PyBytesObject.ob_sval`
    pub bytes_data: u16,
    /// First bit of the kind, of 3 bits, in the state.
    pub kind_shift: u8,
    /// Number of the bit `compact` in the state; `ascii` is the next.
    pub compact_bit: u8,
    /// 0
    pub reserved: [u8; 2],
}
