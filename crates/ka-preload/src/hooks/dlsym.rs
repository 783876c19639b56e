//! dlsym(3)
//!
//! The real dlsym(3) identifies its caller by the return address, because the meaning of `RTLD_NEXT` and `RTLD_DEFAULT`
//! depends on the caller's library. So this hook does its own work first, restores the arguments, and jumps to dlsym.

use core::arch::naked_asm;
use core::ffi::{c_char, c_void};
use core::ptr;

use crate::next;
use crate::rebind;
use crate::shim::active;

/// The next step of the hook, returned in two registers.
#[repr(C)]
struct NextStep {
    /// The return value, if `jump` is null.
    result: *mut c_void,
    /// The address to jump to.
    jump: *mut c_void,
}

/// Binds libraries that were opened since the last call, and answers look-ups of hooked functions.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym() {
    naked_asm!(
        ".cfi_startproc",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        // The stack is a multiple of 16 bytes at each call.
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {before}",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "test rdx, rdx",
        "jz 2f",
        "jmp rdx",
        "2:",
        "ret",
        ".cfi_endproc",
        before = sym before,
    )
}

/// Binds libraries that were opened since the last call, and answers look-ups of hooked functions.
#[cfg(target_arch = "aarch64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym() {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-32]!",
        ".cfi_def_cfa_offset 32",
        ".cfi_offset x29, -32",
        ".cfi_offset x30, -24",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "bl {before}",
        "mov x16, x1",
        "mov x17, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        ".cfi_restore x29",
        ".cfi_restore x30",
        ".cfi_def_cfa_offset 0",
        "cbz x16, 2f",
        "br x16",
        "2:",
        "mov x0, x17",
        "ret",
        ".cfi_endproc",
        before = sym before,
    )
}

unsafe extern "C" fn before(handle: *mut c_void, name: *const c_char) -> NextStep {
    if let Some(shim) = active() {
        rebind::catch_up(shim);
        // SAFETY: the program has passed these arguments to dlsym(3).
        if let Some(hook) = unsafe { rebind::look_up(handle, name) } {
            return NextStep { result: hook, jump: ptr::null_mut() };
        }
    }
    NextStep { result: ptr::null_mut(), jump: next::real_dlsym() }
}
