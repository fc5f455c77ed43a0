//! A library in which each form of unwind information occurs, and the rule that it comes to.

use std::collections::HashMap;

use tracer_common::unwind_table::{Base, Rule};

use super::{built, rule};

/// Labels `r…` mark the return addresses.
pub(super) const ASSEMBLY: &str = "
    .text
plain:
    .cfi_startproc
    call    *%rax
r_entry:
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    call    outside
r_pushed:
    sub     $64, %rsp
    .cfi_adjust_cfa_offset 64
    call    *8(%rax)
r_local:
    .cfi_remember_state
    add     $64, %rsp
    .cfi_adjust_cfa_offset -64
    pop     %rbp
    .cfi_def_cfa_offset 8
    .cfi_restore %rbp
    call    outside
r_restored:
    ret
    .cfi_restore_state
    call    outside
r_cold:
    .cfi_endproc

framed:
    .cfi_startproc
    push    %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov     %rsp, %rbp
    .cfi_def_cfa_register %rbp
    call    outside
r_framed:
    .cfi_same_value %rbp
    call    outside
r_same:
    .cfi_offset %rbp, -40000
    call    outside
r_far:
    .cfi_offset %rbp, 0
    call    outside
r_at_cfa:
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00
    call    outside
r_rbp_expression:
    ret
    .cfi_endproc

outermost:
    .cfi_startproc
    .cfi_undefined %rip
    call    outside
r_outermost:
    hlt
    .cfi_endproc

odd:
    .cfi_startproc
    .cfi_def_cfa %rbx, 8
    call    outside
r_other_register:
    .cfi_def_cfa %rsp, 8
    .cfi_offset %rip, -16
    call    outside
r_return_address_elsewhere:
    .cfi_offset %rip, -8
    .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06
    call    outside
r_cfa_expression:
    .cfi_def_cfa %rsp, 8
    call    outside
r_at_the_end:
    .cfi_endproc

realigned:
    .cfi_startproc
    .cfi_def_cfa %r10, 0
    call    outside
r_before:
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00
    .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06
    call    outside
r_realigned:
    .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x70
    call    outside
r_realigned_saved_below:
    .cfi_endproc

by_hand:
    .cfi_startproc
    .cfi_offset %rbp, -16
    .cfi_escape 0x0f, 0x05, 0x77, 0x18, 0x06, 0x23, 0x08
    call    outside
r_by_hand:
    .cfi_escape 0x0f, 0x05, 0x77, 0x18, 0x06, 0x23, 0x40
    call    outside
r_by_hand_further:
    .cfi_restore %rbp
    .cfi_escape 0x0f, 0x02, 0x77, 0x28
    call    outside
r_plain_expression:
    .cfi_def_cfa %rsp, 12
    call    outside
r_odd_distance:
    .cfi_def_cfa %rsp, 300000
    call    outside
r_far_cfa:
    .cfi_def_cfa %rbp, 16
    .cfi_escape 0x10, 0x06, 0x03, 0x77, 0xf0, 0x00
    call    outside
r_rbp_by_rsp:
    .cfi_endproc

switches_stacks:
    .cfi_startproc
    .cfi_signal_frame
    .cfi_def_cfa %rsp, 16
    call    outside
r_switched:
    .cfi_endproc

    nop
handler:
    .cfi_startproc
    .cfi_signal_frame
    .cfi_escape 0x0f, 0x04, 0x77, 0xa0, 0x01, 0x06
    .cfi_escape 0x10, 0x10, 0x03, 0x77, 0xa8, 0x01
    nop
r_handler:
    mov     $15, %eax
    int3
    syscall
    .cfi_endproc

    nop
r_none_1:
    sub     $8, %rsp
    call    outside
r_none_2:
    add     $8, %rsp
    ret
without_table:
    push    %rbp
    mov     %rsp, %rbp
    sub     $32, %rsp
    call    outside
r_frame_pointer:
    test    %eax, %eax
    jne     1f
    leave
    ret
1:  call    outside
r_frame_pointer_2:
    leave
    ret
    sub     $8, %rsp
    call    outside
r_none_3:
    add     $8, %rsp
    ret
outside:
    ret
";

/// The library of [`ASSEMBLY`], after `sections`.
pub(super) fn assembled(sections: &str) -> Vec<u8> {
    built("rows.S", &format!("{sections}\n{ASSEMBLY}"), &["-shared", "-nostdlib"])
}

/// The rules of [`ASSEMBLY`] by label.
pub(super) fn expected() -> HashMap<String, Rule> {
    let wide = |base, index| Rule::wide(base, index).unwrap();
    [
        ("r_entry", rule(Base::Rsp, 8, 0)),
        ("r_pushed", rule(Base::Rsp, 16, -16)),
        ("r_local", rule(Base::Rsp, 80, -16)),
        ("r_restored", rule(Base::Rsp, 8, 0)),
        ("r_cold", rule(Base::Rsp, 80, -16)),
        ("r_framed", rule(Base::Rbp, 16, -16)),
        ("r_same", rule(Base::Rbp, 16, 0)),
        ("r_far", wide(Base::WideRbp, 0)),
        ("r_at_cfa", Rule::UNSUPPORTED),
        ("r_rbp_expression", rule(Base::Rbp, 16, -16)),
        ("r_outermost", Rule::OUTERMOST),
        ("r_other_register", Rule::UNSUPPORTED),
        ("r_return_address_elsewhere", Rule::UNSUPPORTED),
        // A realigned frame that does not say where `rbp` is.
        ("r_cfa_expression", Rule::UNSUPPORTED),
        ("r_at_the_end", rule(Base::Rsp, 8, 0)),
        ("r_before", Rule::UNSUPPORTED),
        ("r_realigned", rule(Base::RbpIndirect, -8, 0)),
        ("r_realigned_saved_below", rule(Base::RbpIndirect, -8, -16)),
        ("r_by_hand", Rule::by_slot(24, 8, -16).unwrap()),
        ("r_by_hand_further", Rule::by_slot(24, 64, -16).unwrap()),
        ("r_plain_expression", rule(Base::Rsp, 40, 0)),
        ("r_odd_distance", wide(Base::WideRsp, 1)),
        ("r_far_cfa", wide(Base::WideRsp, 2)),
        ("r_rbp_by_rsp", Rule::UNSUPPORTED),
        ("r_switched", Rule::UNSUPPORTED),
        ("r_handler", Rule::SIGNAL_FRAME),
        ("r_none_1", Rule::NONE),
        ("r_none_2", Rule::NONE),
        ("r_none_3", Rule::NONE),
        ("r_frame_pointer", rule(Base::Rbp, 16, -16)),
        ("r_frame_pointer_2", rule(Base::Rbp, 16, -16)),
    ]
    .into_iter()
    .map(|(name, rule)| (name.to_owned(), rule))
    .collect()
}
