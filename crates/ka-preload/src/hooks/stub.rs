//! The instructions of the hooks that take a step before or after the real call.
//!
//! Most hooks have the same form, and differ in the step alone. Written in Rust, each would be compiled anew. The size of
//! the shim counts, because it is loaded into every program.

use core::arch::naked_asm;

use crate::next;

/// Defines a hook that takes a step, and then jumps to the real function. The step takes the arguments of the call.
///
/// The real function returns to the program itself: nothing of the shim is on the stack while a call waits, or while a
/// cancelled thread is unwound from it.
macro_rules! before {
    ($(#[$doc:meta])* $name:ident, $step:path) => {
        $crate::hooks::stub::stub! { $(#[$doc])* $name, before_call, $step, $step }
    };
}

/// Defines a hook that makes the real call between two steps. The first takes the arguments, the second the result and
/// then the first four arguments.
macro_rules! around {
    ($(#[$doc:meta])* $name:ident, $before:path, $after:path) => {
        $crate::hooks::stub::stub! { $(#[$doc])* $name, around_call, $before, $after }
    };
}

/// Defines a hook that names its function and its steps, and jumps to the instructions that all hooks of a kind share.
macro_rules! stub {
    ($(#[$doc:meta])* $name:ident, $kind:ident, $before:path, $after:path) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                "lea r10, [rip + {before}]",
                "lea r11, [rip + {after}]",
                "mov eax, {place}",
                "jmp {kind}",
                before = sym $before,
                after = sym $after,
                place = const $crate::next::Place::$name as usize,
                kind = sym $crate::hooks::stub::$kind,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                "adr x16, {before}",
                "adr x17, {after}",
                "mov x9, {place}",
                "b {kind}",
                before = sym $before,
                after = sym $after,
                place = const $crate::next::Place::$name as usize,
                kind = sym $crate::hooks::stub::$kind,
            );
        }
    };
}
pub(super) use {around, before, stub};

/// The first step of a hook that has only the second.
pub(super) const extern "C" fn nothing() {}

/// Calls r10, and jumps to the function whose place is in rax. None of the functions takes more than six words.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn before_call() {
    naked_asm!(
        ".cfi_startproc",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push rax",
        ".cfi_adjust_cfa_offset 56",
        // Seven words and the return address: the stack is a multiple of 16 bytes, as it must be at a call.
        "call r10",
        "mov rdi, [rsp]",
        "call {find}",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        ".cfi_adjust_cfa_offset -56",
        "jmp rax",
        ".cfi_endproc",
        find = sym next::find,
    )
}

/// Calls r10, the function whose place is in rax, and r11.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn around_call() {
    naked_asm!(
        ".cfi_startproc",
        "push rax",
        "push r11",
        "push r9",
        "push r8",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 72",
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
        "mov rsi, [rsp + 8]",
        "mov rdx, [rsp + 16]",
        "mov rcx, [rsp + 24]",
        "mov r8, [rsp + 32]",
        "call [rsp + 56]",
        "mov rax, [rsp]",
        "add rsp, 72",
        ".cfi_adjust_cfa_offset -72",
        "ret",
        ".cfi_endproc",
        find = sym next::find,
    )
}

/// Calls x16, and jumps to the function whose place is in x9. None of the functions takes more than six words.
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

/// Calls x16, the function whose place is in x9, and x17.
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
        "ldp x1, x2, [sp, #16]",
        "ldp x3, x4, [sp, #32]",
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
