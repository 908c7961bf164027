//! Files by number: who is given one, what is known of each, and whether user space was told.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap},
};
use tracer_ebpf::{
    Header, kind,
    unwind::{FILE_NUMBERS, FileKey, FileTable, MAX_FILES, UnknownFile, file_slot},
};

use crate::emit;

/// Numbers of files. An entry is never changed, and a number is never given twice; user space takes entries out, and waits until
/// nobody runs who has looked one up before it gives what belongs to the number away.
#[map]
static FILES: HashMap<FileKey, u32> = HashMap::with_max_entries(MAX_FILES, 0);

/// What is known of them, by the last bits of their numbers. Written by user space, but for the number of one that is new.
#[map]
static TABLES: Array<FileTable> = Array::with_max_entries(MAX_FILES, 0);

/// The number that was given last.
#[map]
static NUMBERS: Array<u64> = Array::with_max_entries(1, 0);

/// What is known of the file with this number, if it has one that still stands for it.
#[inline(always)]
pub(crate) fn table_of(number: u32) -> Option<*mut FileTable> {
    let table = TABLES.get_ptr_mut(file_slot(number))?;
    // SAFETY: the pointer comes from a map lookup.
    let owner = unsafe { core::ptr::read_volatile(&raw const (*table).number) };
    if number != 0 && owner == number { Some(table) } else { None }
}

/// The number of a file; 0 when there are too many. One that was never met is given the next whose slot is free: where the next
/// is not, whoever asks again may have more luck.
#[inline(always)]
pub(crate) fn number_of(key: &FileKey) -> u32 {
    if let Some(number) = FILES.get_ptr(key) {
        // SAFETY: the pointer comes from a map lookup.
        return unsafe { *number };
    }
    next_number(key)
}

/// The same of one that was never met. Out of line: its variables would lie below all of unwinding.
#[inline(never)]
extern "C" fn next_number(key: &FileKey) -> u32 {
    let Some(numbers) = NUMBERS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer comes from a map lookup.
    let number = unsafe { emit::atomic_next(numbers) };
    if number >= u64::from(FILE_NUMBERS) {
        return 0;
    }
    let Some(table) = TABLES.get_ptr_mut(file_slot(number as u32)) else { return 0 };
    // SAFETY: the pointer comes from a map lookup. Nobody else has this number, nor soon another of this slot.
    unsafe {
        if core::ptr::read_volatile(&raw const (*table).number) != 0 {
            return 0;
        }
        core::ptr::write_volatile(&raw mut (*table).number, number as u32);
    }
    if FILES.insert(key, number as u32, u64::from(BPF_NOEXIST)).is_err() {
        // Another thread was faster, or there are too many.
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*table).number, 0) };
    }
    // SAFETY: as above.
    FILES.get_ptr(key).map_or(0, |number| unsafe { *number })
}

/// Tells user space of a file, if nobody has; when there is no room for the record, the next one does.
#[inline(always)]
pub(crate) fn tell(table: *mut FileTable, image: u32, number: u32, start: u64, last: u64) {
    // SAFETY: the pointer comes from a map lookup.
    if unsafe { emit::atomic_next(&raw mut (*table).told) } != 1 {
        return;
    }
    let header = Header::new(kind::UNKNOWN_FILE, image, 0, bpf_get_current_pid_tgid());
    if !emit::unknown_file(&UnknownFile { header, number: u64::from(number), start, end: last }) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*table).told, 0) };
    }
}
