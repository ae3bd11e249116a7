//! Step 11, boot: what can be said about an EFI program before a firmware sees it. A wrong file on a BOOT partition
//! costs each node of the fleet a reboot and a fallback; here it costs a message.

use anyhow::{Context as _, bail, ensure};
use boot_select::kernel;

/// The subsystem of EFI applications, which alone are started by a loader.
const EFI_APPLICATION: u16 = 10;
/// The PE32+ format: 64-bit addresses.
const PE32_PLUS: u16 = 0x20b;

/// The headers of a PE image that is an EFI application of 64 bits.
#[derive(Debug)]
pub(crate) struct EfiProgram<'a> {
    bytes: &'a [u8],
    machine: u16,
    /// Where the section table begins, and its number of entries.
    sections: (usize, u16),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

impl<'a> EfiProgram<'a> {
    /// Reads the headers. `machines` are the types of PE files that are of use.
    ///
    /// # Errors
    /// What it is instead of an EFI application for one of them.
    pub(crate) fn parse(bytes: &'a [u8], machines: &[u16]) -> anyhow::Result<Self> {
        ensure!(
            bytes.starts_with(b"MZ"),
            "it is no EFI program: expected it to begin with MZ, found {:02x?}",
            &bytes[..bytes.len().min(2)]
        );
        let cut = "it is no EFI program: it ends within its headers";
        let header = u32_at(bytes, 0x3c).and_then(|at| usize::try_from(at).ok()).context(cut)?;
        let signature = header.checked_add(4).and_then(|end| bytes.get(header..end)).context(cut)?;
        ensure!(
            signature == b"PE\0\0",
            "it is no EFI program: it begins with MZ, but no PE header stands at byte {header}"
        );
        // The signature, then the file header of 20 bytes, then the optional header.
        let optional = header + 24;
        let field = |at: usize| u16_at(bytes, at).context(cut);
        let (machine, sections, optional_len) = (field(header + 4)?, field(header + 6)?, field(header + 20)?);
        let (magic, subsystem) = (field(optional)?, field(optional + 68)?);
        ensure!(magic == PE32_PLUS, "it is no 64-bit EFI program: its PE header has the magic {magic:#x}");
        ensure!(
            subsystem == EFI_APPLICATION,
            "it is no EFI application: its PE header has the subsystem {subsystem}, expected {EFI_APPLICATION}"
        );
        // What the loader would say, word for word, in time.
        kernel::check(bytes, machines).map_err(anyhow::Error::msg)?;
        Ok(Self { bytes, machine, sections: (optional + usize::from(optional_len), sections) })
    }

    /// Its architecture, as manifests name it.
    pub(crate) fn arch(&self) -> String {
        kernel::machine_name(self.machine)
    }

    /// Whether it has the header of its architecture's Linux kernels. On x86-64 the kernel's documentation calls it the
    /// setup header, on arm64 the image header; where the kernel is compressed behind a program that unpacks it
    /// (CONFIG_EFI_ZBOOT, which x86 does not have), that has a mark of its own.
    fn is_linux(&self) -> bool {
        let stands = |place: usize, mark: &[u8; 4]| self.bytes.get(place..place + 4) == Some(mark);
        if self.machine == kernel::X86_64 {
            stands(0x202, b"HdrS")
        } else {
            stands(0x38, b"ARM\x64") || stands(4, b"zimg")
        }
    }

    /// Whether it is a unified kernel image: the kernel is a section of it.
    fn is_unified(&self) -> bool {
        self.section_len(".linux").is_some_and(|len| len > 0)
    }

    /// The length of a section in memory; none where there is no such section.
    pub(crate) fn section_len(&self, name: &str) -> Option<u32> {
        let (start, count) = self.sections;
        (0..usize::from(count)).find_map(|i| {
            let at = start.checked_add(i * 40)?;
            let found = self.bytes.get(at..at + 8)?;
            let found = found.split(|byte| *byte == 0).next()?;
            if found == name.as_bytes() { u32_at(self.bytes, at + 8) } else { None }
        })
    }
}

/// A Linux kernel that the firmware can start: an EFI application with the header of its architecture's kernels.
///
/// # Errors
/// What it is instead.
pub(crate) fn check_kernel(bytes: &[u8]) -> anyhow::Result<EfiProgram<'_>> {
    let advice = "a kernel with an EFI stub is needed (CONFIG_EFI_STUB, as in distributions' vmlinuz files)";
    if bytes.starts_with(b"\x7fELF") {
        bail!("it is an ELF file: {advice}, not vmlinux");
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bail!("it is compressed with gzip: {advice}; unpack it first");
    }
    let program = EfiProgram::parse(bytes, &kernel::MACHINES).context(advice)?;
    ensure!(
        program.is_linux(),
        "it is an EFI program for {}, but no Linux kernel: the header of one was expected; a unified kernel image goes \
         with --efi",
        program.arch()
    );
    Ok(program)
}

/// A unified kernel image: the loader gives it a command line, so it must not have one of its own.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_unified(bytes: &[u8]) -> anyhow::Result<EfiProgram<'_>> {
    let program = EfiProgram::parse(bytes, &kernel::MACHINES)?;
    if program.section_len(".cmdline").is_some_and(|len| len > 0) {
        bail!(
            "it has a command line of its own (the section .cmdline), which names one root partition for both slots: \
             build it without; --cmdline goes to a file beside it"
        );
    }
    if !program.is_unified() {
        let what = if program.is_linux() {
            "it is a bare Linux kernel: give it with --kernel"
        } else {
            "it is an EFI program without a kernel: expected the section .linux, as ukify makes it"
        };
        bail!("{what}");
    }
    Ok(program)
}

/// The loader itself, for the EFI system partition of an x86-64 machine.
///
/// # Errors
/// What it is instead.
pub(crate) fn check_loader(bytes: &[u8]) -> anyhow::Result<()> {
    let program = EfiProgram::parse(bytes, &[kernel::X86_64])?;
    if program.is_linux() || program.is_unified() {
        bail!(
            "it is a Linux kernel, which would start no slot: expected boot-select.efi; a kernel goes into a boot image \
             (`image-tools boot-image build`), and that with --boot"
        );
    }
    if !is_boot_select(bytes) {
        tracing::warn!(
            "the loader is not boot-select: expected image-tools/boot-select's program; another one must follow the same \
             rule (docs/boot.md)"
        );
    }
    Ok(())
}

/// Whether a program is boot-select, which starts nothing but what lies on BOOT partitions.
pub(crate) fn is_boot_select(program: &[u8]) -> bool {
    // The variable in which it tells the started system of the boot: no other program has it.
    let mark: Vec<u8> = "FlipsideBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    program.windows(mark.len()).any(|window| window == mark)
}
