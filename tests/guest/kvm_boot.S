/*
 * kvm_boot.S - a guest without an operating system, for `-accel kvm` where a stock kernel does not
 * boot: 64 KiB of firmware (`-bios boot.rom`), so that no BIOS runs before it either. It goes to
 * 32-bit protected mode and does what stepper.c does: adds one to a counter in page 0, 1, 2, ... in
 * strict order, round after round, looks at each page first, and writes to the serial port.
 * pattern.h describes its pages (PAGE_BOOT).
 *
 * Lines: "R xxxxxxxx" (rounds done, hexadecimal) once in `print_mask + 1` rounds; "E xxxxxxxx" (page
 * number) when a page is not as it was left, and then it stands still.
 *
 * Whoever uses the file may set two words in it: `pages` at 0xffe0 and `print_mask` (2^n - 1) at
 * 0xffe4. Memory from 16 MiB on is used, which is zero when a QEMU starts.
 */
        .set    BASE, 0x1000000
        .set    PAGE_BYTES, 4096
        .set    HEADER_BYTES, 64
        .set    COM1, 0x3f8
        .set    PAGE_NUMBER, 24         /* offsets in struct page_header */
        .set    TOTAL, 32
        .set    VALUE, 48
        .set    TAIL, PAGE_BYTES - 8

        /* Linked at 0xffff0000, where a processor finds the last 64 KiB of the firmware. Real mode
         * goes on in their copy at 0xf0000, as a BIOS does: there are KVM hosts that can't leave
         * real mode from the segment that a processor starts in. */
        .section .text
        .globl  _start
_start:
        .code16
real_mode:
        cli
        cld
        lgdtl   %cs:(gdt_pointer - _start)
        movl    %cr0, %eax
        andl    $0x1fffffff, %eax       /* paging and "cache disable" off */
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7c00, %esp
        movl    pages, %ebp             /* ebp: pages, for good */

        movl    $BASE, %edi
        xorl    %ebx, %ebx
fill:   movl    $header, %esi
        movl    $HEADER_BYTES / 4, %ecx
        rep movsl
        movl    %ebx, PAGE_NUMBER - HEADER_BYTES(%edi)
        movl    %ebp, TOTAL - HEADER_BYTES(%edi)
        addl    $PAGE_BYTES - HEADER_BYTES, %edi
        incl    %ebx
        cmpl    %ebp, %ebx
        jb      fill

        xorl    %edx, %edx              /* edx: rounds done */
        movl    %edx, %eax
        movb    $'R', %bl
        call    say
round:  movl    $BASE, %edi
        xorl    %ecx, %ecx
step:   cmpl    %ecx, PAGE_NUMBER(%edi)
        jne     wrong
        cmpl    %edx, VALUE(%edi)
        jne     wrong
        cmpl    %edx, TAIL(%edi)
        jne     wrong
        incl    VALUE(%edi)
        incl    TAIL(%edi)
        addl    $PAGE_BYTES, %edi
        incl    %ecx
        cmpl    %ebp, %ecx
        jb      step
        incl    %edx
        testl   %edx, print_mask
        jnz     round
        movl    %edx, %eax
        movb    $'R', %bl
        call    say
        jmp     round

wrong:  movl    %ecx, %eax
        movb    $'E', %bl
        call    say
halt:   hlt
        jmp     halt

/* Writes the letter in bl, a space, eax as 8 digits, and a line end. Keeps all but eax, ebx. */
say:    pushl   %ecx
        pushl   %edx
        pushl   %eax
        movb    %bl, %al
        call    put
        movb    $' ', %al
        call    put
        popl    %ebx
        movl    $8, %ecx
digit:  roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     1f
        addb    $'a' - '9' - 1, %al
1:      call    put
        loop    digit
        movb    $'\n', %al
        call    put
        popl    %edx
        popl    %ecx
        ret

/* Writes al to the serial port when it is free. */
put:    movw    $COM1 + 5, %dx
        movb    %al, %ah
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        ret

        /* The "accessed" bits are set already: the processor can't set them in a ROM. */
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* code: base 0, 4 GiB */
        .quad   0x00cf93000000ffff      /* data: the same */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .balign 8
header: .quad   0x5041534d565f4547      /* PATTERN_MAGIC0 */
        .quad   0x9e3779b97f4a7c15      /* PATTERN_MAGIC1 */
        .long   3                       /* PAGE_BOOT */
        .long   0
        .fill   5, 8, 0

        .org    0xffe0
pages:  .long   4096
print_mask:
        .long   15
        .org    0xfff0                  /* where the processor starts */
        .code16
        ljmpw   $0xf000, $(real_mode - _start)
        .org    0x10000
