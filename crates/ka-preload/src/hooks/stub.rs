//! The instructions of the hooks that take a step before or after the real call.
//!
//! Most hooks differ only in that step. They share these instructions, because the compiler would emit all code again
//! for each hook, and the shim must be small: it is loaded into every program.

use core::arch::naked_asm;

use libc::c_int;

use crate::next;

/// The arguments of a call, as words. The hooked functions have at most six.
pub(super) type Arguments = [usize; 6];

/// The step before the real call.
pub(super) type Before = extern "C" fn(&Arguments);

/// The step after the real call. Its first argument is the call's result.
pub(super) type After = unsafe extern "C" fn(isize, &Arguments);

/// Returns an int argument, which is the lower half of its word.
pub(super) const fn int(word: usize) -> c_int {
    word as c_int
}

/// Defines a hook that takes a step, and then jumps to the real function.
///
/// The real function returns directly to the program. So no frame of the shim is on the stack while a call blocks, or
/// while a cancelled thread is unwound from the call.
macro_rules! before {
    ($(#[$doc:meta])* $name:ident, $before:path) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                "lea r10, [rip + {before}]",
                "mov eax, {index}",
                "jmp {kind}",
                before = sym $before,
                index = const $crate::next::Function::$name as usize,
                kind = sym $crate::hooks::stub::before_call,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                "adr x16, {before}",
                "mov x9, {index}",
                "b {kind}",
                before = sym $before,
                index = const $crate::next::Function::$name as usize,
                kind = sym $crate::hooks::stub::before_call,
            );
        }
    };
}

/// Defines a hook that makes the real call between two steps.
macro_rules! around {
    ($(#[$doc:meta])* $name:ident, $before:path, $after:path) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                "lea r10, [rip + {before}]",
                "lea r11, [rip + {after}]",
                "mov eax, {index}",
                "jmp {kind}",
                before = sym $before,
                after = sym $after,
                index = const $crate::next::Function::$name as usize,
                kind = sym $crate::hooks::stub::around_call,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                "adr x16, {before}",
                "adr x17, {after}",
                "mov x9, {index}",
                "b {kind}",
                before = sym $before,
                after = sym $after,
                index = const $crate::next::Function::$name as usize,
                kind = sym $crate::hooks::stub::around_call,
            );
        }
    };
}
pub(super) use {around, before};

/// The step before the real call, for a hook that acts only after the call.
pub(super) extern "C" fn nothing_before(_: &Arguments) {}

/// The step after the real call, for a hook that acts only before the call.
pub(super) unsafe extern "C" fn nothing_after(_: isize, _: &Arguments) {}

/// Calls r10, and jumps to the function whose index is in rax. The arguments are saved on the stack, the first one
/// lowest.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn before_call() {
    naked_asm!(
        ".cfi_startproc",
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        "push r9",
        ".cfi_adjust_cfa_offset 8",
        "push r8",
        ".cfi_adjust_cfa_offset 8",
        "push rcx",
        ".cfi_adjust_cfa_offset 8",
        "push rdx",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        // Seven words and the return address: the stack pointer is a multiple of 16, as a call requires.
        "mov rdi, rsp",
        "call r10",
        "mov rdi, [rsp + 48]",
        "call {find}",
        "pop rdi",
        ".cfi_adjust_cfa_offset -8",
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        "pop rdx",
        ".cfi_adjust_cfa_offset -8",
        "pop rcx",
        ".cfi_adjust_cfa_offset -8",
        "pop r8",
        ".cfi_adjust_cfa_offset -8",
        "pop r9",
        ".cfi_adjust_cfa_offset -8",
        "pop r10",
        ".cfi_adjust_cfa_offset -8",
        "jmp rax",
        ".cfi_endproc",
        find = sym next::find,
    )
}

/// Calls r10, the function whose index is in rax, and r11.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn around_call() {
    naked_asm!(
        ".cfi_startproc",
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        "push r11",
        ".cfi_adjust_cfa_offset 8",
        "push r9",
        ".cfi_adjust_cfa_offset 8",
        "push r8",
        ".cfi_adjust_cfa_offset 8",
        "push rcx",
        ".cfi_adjust_cfa_offset 8",
        "push rdx",
        ".cfi_adjust_cfa_offset 8",
        "push rsi",
        ".cfi_adjust_cfa_offset 8",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "lea rdi, [rsp + 8]",
        "call r10",
        "mov rdi, [rsp + 64]",
        "call {find}",
        "mov rdi, [rsp + 8]",
        "mov rsi, [rsp + 16]",
        "mov rdx, [rsp + 24]",
        "mov rcx, [rsp + 32]",
        "mov r8, [rsp + 40]",
        "mov r9, [rsp + 48]",
        "call rax",
        "mov [rsp], rax",
        "mov rdi, rax",
        "lea rsi, [rsp + 8]",
        "call [rsp + 56]",
        "mov rax, [rsp]",
        "add rsp, 72",
        ".cfi_adjust_cfa_offset -72",
        "ret",
        ".cfi_endproc",
        find = sym next::find,
    )
}

/// Calls x16, and jumps to the function whose index is in x9. The arguments are saved on the stack, the first one
/// lowest.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn before_call() {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-80]!",
        ".cfi_def_cfa_offset 80",
        ".cfi_offset x29, -80",
        ".cfi_offset x30, -72",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "str x9, [sp, #64]",
        "add x0, sp, #16",
        "blr x16",
        "ldr x0, [sp, #64]",
        "bl {find}",
        "mov x16, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x2, x3, [sp, #32]",
        "ldp x4, x5, [sp, #48]",
        "ldp x29, x30, [sp], #80",
        ".cfi_restore x29",
        ".cfi_restore x30",
        ".cfi_def_cfa_offset 0",
        "br x16",
        ".cfi_endproc",
        find = sym next::find,
    )
}

/// Calls x16, the function whose index is in x9, and x17.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn around_call() {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-80]!",
        ".cfi_def_cfa_offset 80",
        ".cfi_offset x29, -80",
        ".cfi_offset x30, -72",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x9, x17, [sp, #64]",
        "add x0, sp, #16",
        "blr x16",
        "ldr x0, [sp, #64]",
        "bl {find}",
        "mov x16, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x2, x3, [sp, #32]",
        "ldp x4, x5, [sp, #48]",
        "blr x16",
        "ldr x17, [sp, #72]",
        "str x0, [sp, #64]",
        "add x1, sp, #16",
        "blr x17",
        "ldr x0, [sp, #64]",
        "ldp x29, x30, [sp], #80",
        ".cfi_restore x29",
        ".cfi_restore x30",
        ".cfi_def_cfa_offset 0",
        "ret",
        ".cfi_endproc",
        find = sym next::find,
    )
}
