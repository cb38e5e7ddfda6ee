//! bzImages of every age and compression, made here and taken apart by the loader.

use crate::elf_file::{PAGE_OFFSET, Segment, elf};
use crate::loader::for_a_while;
use lguest::loader::{BzImage, Compression, Format, NoGeneration, Protocol};
use lguest::{Generation, Kernel, KernelError};
use lguest_switcher::{GuestPhys, GuestVirt};
use lzma_rust2::{CheckType, FilterConfig, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use proptest::prelude::*;
use std::io::Write;

/// Where these kernels are linked to run, as kernels of 4.x are.
const START: u32 = 16 << 20;

/// The bytes of set-up code, a boot sector and four more; then those of code that a PC would unpack the kernel by.
const SETUP: usize = 5 * 512;
const UNPACKING: usize = 0x123;

/// Offsets in a set-up header ("The Linux/x86 Boot Protocol", "The Real-Mode Kernel Header").
const SETUP_SECTORS: usize = 0x1f1;
const VERSION: usize = 0x206;
const ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const COMMAND_LINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const INIT_SIZE: usize = 0x260;

const ALL: [Compression; 6] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lzo,
    Compression::Lz4,
];

/// What a small kernel has in memory: a banner, the name of its memory map, and some calls, which xz's filter changes.
fn code() -> Vec<u8> {
    let banner = b"Linux version 4.1.15 (me@here) #1 of one\n\0LGUEST\0";
    [&banner[..], &b"\x90\xe8\x01\x02\x03\x04".repeat(40)].concat()
}

/// The ELF file of a kernel with these bytes, entered where it is loaded.
fn vmlinux(code: &[u8]) -> Vec<u8> {
    let mut file = elf(&[Segment::at(START, code)]);
    file[24..28].copy_from_slice(&START.to_le_bytes());
    file
}

/// `lzop -9 -c` of `vmlinux(&code())`, as lzop 1.04 made it.
const LZOPPED: &[u8] = &[
    0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a, 0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 0x03,
    0x09, 0x03, 0x00, 0x00, 0x0d, 0x00, 0x00, 0x00, 0x00, 0x6b, 0x06, 0xf8, 0x4c, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x2c, 0x4d, 0x03, 0x2b, 0x00, 0x00, 0x01, 0x75, 0x00, 0x00, 0x00, 0x73, 0x64, 0xb7,
    0x4e, 0x21, 0x19, 0x7f, 0x45, 0x4c, 0x46, 0x01, 0x01, 0x01, 0x00, 0xe0, 0x00, 0x01, 0x02, 0x00,
    0x03, 0x00, 0xd7, 0x01, 0x01, 0x34, 0x00, 0x28, 0x03, 0x00, 0x34, 0x00, 0x20, 0x5d, 0x02, 0x28,
    0xa0, 0x03, 0x4d, 0x00, 0x54, 0xb9, 0x02, 0xc1, 0x79, 0x01, 0x21, 0x40, 0x02, 0x6d, 0x00, 0x07,
    0x65, 0x02, 0x10, 0x08, 0x00, 0x00, 0x25, 0x4c, 0x69, 0x6e, 0x75, 0x78, 0x20, 0x76, 0x65, 0x72,
    0x73, 0x69, 0x6f, 0x6e, 0x20, 0x34, 0x2e, 0x31, 0x2e, 0x31, 0x35, 0x20, 0x28, 0x6d, 0x65, 0x40,
    0x68, 0x65, 0x72, 0x65, 0x29, 0x20, 0x23, 0x31, 0x20, 0x6f, 0x66, 0x20, 0x6f, 0x6e, 0x65, 0x0a,
    0x00, 0x4c, 0x47, 0x55, 0x45, 0x53, 0x54, 0x00, 0x90, 0xe8, 0x01, 0x02, 0x03, 0x04, 0x20, 0xc9,
    0x14, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// A kernel, compressed as its build would do it. LZO only knows one kernel: there is no crate that packs it as
/// lzop does.
fn packed(compression: Compression, kernel: &[u8]) -> Vec<u8> {
    let mut payload = match compression {
        Compression::Gzip => {
            let unix = flate2::GzBuilder::new().operating_system(3);
            let mut stream = unix.write(Vec::new(), flate2::Compression::default());
            stream.write_all(kernel).unwrap();
            return stream.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut stream = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            stream.write_all(kernel).unwrap();
            stream.finish().unwrap()
        }
        Compression::Lzma => {
            let options = LzmaOptions { dict_size: 1 << 16, ..LzmaOptions::with_preset(0) };
            let mut stream = LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            stream.write_all(kernel).unwrap();
            stream.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(0);
            options.set_check_sum_type(CheckType::Crc32);
            options.filters = vec![FilterConfig::new_bcj_x86(0)];
            let mut stream = XzWriter::new(Vec::new(), options).unwrap();
            stream.write_all(kernel).unwrap();
            stream.finish().unwrap()
        }
        Compression::Lzo => {
            assert_eq!(kernel, vmlinux(&code()));
            LZOPPED.to_vec()
        }
        Compression::Lz4 => {
            let mut stream = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in kernel.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                stream.extend((packed.len() as u32).to_le_bytes());
                stream.extend(packed);
            }
            stream
        }
    };
    payload.extend((kernel.len() as u32).to_le_bytes());
    payload
}

/// A bzImage around a payload, with code before it that nearly looks like one. Fields that its protocol doesn't have yet are other code.
fn bzimage(protocol: u16, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0x90; SETUP + UNPACKING];
    file[SETUP..SETUP + 10].copy_from_slice(&[0x1f, 0x8b, 0, 0, 0, 0, 0, 0, 0, 3]);
    let mut field = |since, at: usize, bytes: &[u8]| {
        if protocol >= since {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
    };
    field(0, SETUP_SECTORS, &[4]);
    field(0, VERSION - 4, b"HdrS");
    field(0, VERSION, &protocol.to_le_bytes());
    field(0x205, ALIGNMENT, &(1u32 << 20).to_le_bytes());
    field(0x205, RELOCATABLE, &[1]);
    field(0x206, COMMAND_LINE_SIZE, &2047u32.to_le_bytes());
    field(0x208, PAYLOAD_OFFSET, &(UNPACKING as u32).to_le_bytes());
    field(0x208, PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    field(0x20a, INIT_SIZE, &0x12_3000u32.to_le_bytes());
    file.extend(payload);
    file.extend([0; 20]); // a file is filled up to whole paragraphs, and has a checksum
    file
}

/// A bzImage of 4.1's protocol with the usual kernel.
pub(crate) fn usual(compression: Compression) -> Vec<u8> {
    bzimage(0x20d, &packed(compression, &vmlinux(&code())))
}

/// What only a bzImage says about a kernel.
fn facts(kernel: &Kernel) -> BzImage {
    match kernel.format() {
        Format::BzImage(facts) => facts,
        Format::Elf => panic!("not a bzImage"),
    }
}

fn refusal(file: &[u8]) -> String {
    Kernel::parse(file).expect_err("a bad kernel").to_string()
}

#[test]
fn kernels_are_unpacked_whatever_they_are_packed_by() {
    for compression in ALL {
        let kernel = Kernel::parse(&usual(compression)).unwrap();
        assert_eq!(kernel.segments().len(), 1, "{compression}");
        assert_eq!(kernel.segments()[0].bytes(), code(), "{compression}");
        assert_eq!(kernel.start(), GuestPhys(START));
        assert_eq!(kernel.page_offset(), GuestVirt(PAGE_OFFSET));
        assert_eq!(kernel.entry(), GuestVirt(START));
        assert_eq!(kernel.banner(), Some("Linux version 4.1.15 (me@here) #1 of one"));
        assert_eq!(kernel.generation(), Ok(Generation::V4_0));
        assert!(kernel.has_guest_support());
        let payload = facts(&kernel).payload;
        assert_eq!(payload.compression, compression);
        assert_eq!(payload.at, (SETUP + UNPACKING) as u64);
        assert_eq!(payload.packed, packed(compression, &vmlinux(&code())).len() as u64);
        assert_eq!(payload.unpacked, vmlinux(&code()).len() as u64);
    }
}

#[test]
fn what_is_packed_in_blocks_may_have_many() {
    // Two of lz4's, one of them short.
    let large = vmlinux(&[code(), vec![0x5a; 8 << 20]].concat());
    let kernel = Kernel::parse(&bzimage(0x20d, &packed(Compression::Lz4, &large))).unwrap();
    assert!(large.ends_with(kernel.segments()[0].bytes()));
    assert_eq!(kernel.end(), u64::from(START) + code().len() as u64 + (8 << 20));

    // Lzop stores what it can't pack; and here it did without checksums.
    let small = vmlinux(&code());
    const FLAGS: usize = 0x11;
    const BLOCKS: usize = 0x26;
    let mut stored = LZOPPED[..BLOCKS].to_vec();
    stored[FLAGS..FLAGS + 4].fill(0);
    for block in small.chunks(100) {
        stored.extend([(block.len() as u32).to_be_bytes(); 2].concat());
        stored.extend(block);
    }
    stored.extend([0; 4]);
    stored.extend((small.len() as u32).to_le_bytes());
    let kernel = Kernel::parse(&bzimage(0x20d, &stored)).unwrap();
    assert_eq!(kernel.segments()[0].bytes(), code());
}

#[test]
fn what_is_cut_short_anywhere_is_refused() {
    for compression in ALL {
        let file = usual(compression);
        for length in 0..file.len() - 20 {
            let Err(error) = Kernel::parse(&file[..length]) else {
                panic!("{compression}: {length} of {} bytes are a kernel", file.len());
            };
            match (length, error) {
                (0, KernelError::Empty) | (1..0x206, KernelError::UnknownFormat) => {}
                (0x206.., KernelError::Truncated { have, .. }) => assert_eq!(have, length as u64),
                (_, error) => panic!("{compression}: {length} bytes: {error}"),
            }
        }
    }
    let whole = usual(Compression::Gzip);
    assert_eq!(
        refusal(&whole[..0x249]),
        "it is cut short: its set-up header would end at byte 588, and the file has 585"
    );
    let end = whole.len() - 20;
    assert_eq!(
        refusal(&whole[..end - 1]),
        format!(
            "it is cut short: its compressed kernel would end at byte {end}, and the file has {}",
            end - 1
        )
    );
}

#[test]
fn a_stream_that_is_cut_short_anywhere_is_refused() {
    for compression in ALL {
        let kernel = vmlinux(&code());
        let payload = packed(compression, &kernel);
        for length in 0..payload.len() {
            // As it would be if the rest were lost when the kernel was built: all sizes are right.
            let mut cut = payload[..length].to_vec();
            cut.extend((kernel.len() as u32).to_le_bytes());
            match Kernel::parse(&bzimage(0x20d, &cut)) {
                // lzma's and lz4's last bytes say nothing but that it is the end; lzop's too
                Ok(whole) => {
                    assert!(payload.len() - length <= 16, "{compression}: {length} bytes");
                    assert_eq!(whole.segments()[0].bytes(), code());
                }
                Err(
                    KernelError::BadPayload { at, .. }
                    | KernelError::WrongSize { at, .. }
                    | KernelError::UnknownCompression { at, .. },
                ) => assert_eq!(at, (SETUP + UNPACKING) as u64),
                Err(error) => panic!("{compression}: {length} bytes: {error}"),
            }
        }
    }
}

#[test]
fn damage_is_seen_where_there_is_a_checksum() {
    for compression in [Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Lzo] {
        let mut file = usual(compression);
        let middle = SETUP + UNPACKING + packed(compression, &vmlinux(&code())).len() / 2;
        file[middle] ^= 0x10;
        let refusal = refusal(&file);
        let place =
            format!("its {compression} stream, at byte 0xb23 of the file, can't be unpacked");
        assert!(refusal.starts_with(&place), "{refusal}");
    }
}

#[test]
fn each_malformation_of_a_payload_has_its_sentence() {
    let kernel = vmlinux(&code());
    for compression in ALL {
        for announced in [kernel.len() as u32 - 1, kernel.len() as u32 + 1] {
            let mut payload = packed(compression, &kernel);
            let size = payload.len() - 4;
            payload[size..].copy_from_slice(&announced.to_le_bytes());
            let refusal = refusal(&bzimage(0x20d, &payload));
            let place = format!("its {compression} stream, at byte 0xb23 of the file, ");
            assert!(refusal.starts_with(&place), "{refusal}");
        }
    }
    assert_eq!(
        refusal(&bzimage(0x20d, b"neither packed nor plain")),
        "its compressed kernel, at byte 0xb23 of the file, begins as no compression does that is known here: [6e, 65, 69, 74, 68, 65, 72, 20]"
    );
    assert_eq!(
        refusal(&bzimage(0x20e, b"\x28\xb5\x2f\xfd and more")),
        "its kernel is compressed by zstd, which only kernels from 5.9 on are, and lguest left Linux with 4.14"
    );
    assert_eq!(
        refusal(&bzimage(0x20d, &packed(Compression::Xz, b"A fairy tale"))),
        "what it unpacks to is bad: it isn't an ELF file"
    );
    let mut other = kernel.clone();
    other[4] = 2;
    assert_eq!(
        refusal(&bzimage(0x20d, &packed(Compression::Bzip2, &other))),
        "what it unpacks to is bad: it is a 64-bit ELF file, and lguest runs 32-bit kernels"
    );
}

#[test]
fn a_bomb_does_not_go_off() {
    let zeros = vec![0; (256 << 20) + 1];
    let mut bomb = packed(Compression::Gzip, &zeros);
    assert!(matches!(
        Kernel::parse(&bzimage(0x20d, &bomb)),
        Err(KernelError::TooLarge { limit: 0x1000_0000 })
    ));
    assert!(matches!(
        Kernel::parse(&bzimage(0x207, &bomb)),
        Err(KernelError::TooLarge { limit: 0x1000_0000 })
    ));
    // One that says it is harmless is unpacked until it turns out not to be.
    let size = bomb.len() - 4;
    bomb[size..].copy_from_slice(&1000u32.to_le_bytes());
    assert!(matches!(
        Kernel::parse(&bzimage(0x20d, &bomb)),
        Err(KernelError::WrongSize { announced: 1000, .. })
    ));
    // A dictionary may not be larger than any kernel.
    let mut lzma = packed(Compression::Lzma, &vmlinux(&code()));
    lzma[3..5].copy_from_slice(&[0, 0x40]);
    let refusal = refusal(&bzimage(0x20d, &lzma));
    assert!(refusal.starts_with("its lzma stream, at byte 0xb23 of the file,"), "{refusal}");
}

#[test]
fn fields_are_read_from_the_protocol_that_brought_them() {
    let flat = packed(Compression::Gzip, &code_at_c0());
    for (protocol, limit, relocatable) in [
        (0x200, 255, None),
        (0x204, 255, None),
        (0x205, 255, Some(1 << 20)),
        (0x206, 2047, Some(1 << 20)),
        (0x207, 2047, Some(1 << 20)),
    ] {
        let facts = facts(&Kernel::parse(&bzimage(protocol, &flat)).unwrap());
        assert_eq!(facts.header.protocol, Protocol(protocol));
        assert_eq!(facts.header.command_line_limit, limit, "{protocol:x}");
        assert_eq!(facts.header.relocatable, relocatable, "{protocol:x}");
        assert_eq!(facts.header.init_size, None, "{protocol:x}");
        assert_eq!(facts.payload.at, (SETUP + UNPACKING) as u64);
    }
    for (protocol, init_size) in [(0x208, None), (0x209, None), (0x20a, Some(0x12_3000))] {
        let file = bzimage(protocol, &packed(Compression::Gzip, &vmlinux(&code())));
        let facts = facts(&Kernel::parse(&file).unwrap());
        assert_eq!(facts.header.init_size, init_size, "{protocol:x}");
    }
    let mut fixed = usual(Compression::Gzip);
    fixed[RELOCATABLE] = 0;
    assert_eq!(facts(&Kernel::parse(&fixed).unwrap()).header.relocatable, None);
    assert_eq!(Protocol(0x20d).to_string(), "2.13");
    assert_eq!(Protocol(0x204).to_string(), "2.04");
}

#[test]
fn no_sectors_of_set_up_code_are_four() {
    let mut file = usual(Compression::Lz4);
    file[SETUP_SECTORS] = 0;
    assert!(Kernel::parse(&file).is_ok());
    file[SETUP_SECTORS] = 3;
    assert!(matches!(Kernel::parse(&file), Err(KernelError::UnknownCompression { .. })));
}

/// Code that loads a global variable four times, the way each kernel tells its `PAGE_OFFSET`. Before paging,
/// a kernel loads from physical addresses.
fn code_at_c0() -> Vec<u8> {
    let early = [0xa1, 0x78, 0x56, 0x34, 0x00].repeat(5);
    let late = [0xa1, 0x78, 0x56, 0x34, 0xc0, 0x90].repeat(4);
    [&b"GenuineLguest"[..], &early, &late].concat()
}

/// A bzImage from before command lines could be long, with a kernel that has a signature.
pub(crate) fn first_generation() -> Vec<u8> {
    bzimage(0x205, &packed(Compression::Gzip, &code_at_c0()))
}

#[test]
fn an_old_bzimage_is_searched_for_clues() {
    let file = bzimage(0x206, &packed(Compression::Gzip, &code_at_c0()));
    let kernel = Kernel::parse(&file).unwrap();
    assert_eq!(kernel.start(), GuestPhys(1 << 20));
    assert_eq!(kernel.page_offset(), GuestVirt(0xc000_0000));
    assert_eq!(kernel.generation(), Ok(Generation::First));
    assert_eq!(kernel.entry(), GuestVirt(0xc010_0000 + 13));
    assert_eq!(kernel.segments()[0].bytes(), code_at_c0());

    // One from after the signature's time is entered at its first byte.
    let banner = b"Linux version 2.6.24 (me@here) #1\n\0LGUEST\0";
    let code = [&banner[..], &code_at_c0()[13..]].concat();
    let kernel = Kernel::parse(&bzimage(0x207, &packed(Compression::Gzip, &code))).unwrap();
    assert_eq!(kernel.generation(), Ok(Generation::V2_6_24));
    assert_eq!(kernel.entry(), GuestVirt(1 << 20));
}

#[test]
fn each_malformation_of_an_old_bzimage_has_its_sentence() {
    let old = |code: &[u8]| bzimage(0x206, &packed(Compression::Gzip, code));
    let three_loads = &code_at_c0()[..code_at_c0().len() - 6];
    assert!(matches!(Kernel::parse(&old(three_loads)), Err(KernelError::NoPageOffset)));
    let whole = old(&code_at_c0());
    assert_eq!(
        refusal(&whole[..SETUP]),
        "it is a bzImage of boot protocol 2.06, which doesn't say where its kernel is, and there is no gzip stream in it"
    );
    assert_eq!(
        refusal(&whole[..SETUP - 1]),
        "it is cut short: its set-up code would end at byte 2560, and the file has 2559"
    );
    for length in 0..whole.len() - 20 {
        assert!(Kernel::parse(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn a_kernel_that_is_no_guest_is_understood_and_told_apart() {
    let linux = |banner: &str| {
        let code = format!("Linux version {banner} (me@here) #1\n");
        Kernel::parse(&bzimage(0x20d, &packed(Compression::Xz, &vmlinux(code.as_bytes())))).unwrap()
    };
    let new = linux("6.1.0-50-686");
    assert_eq!(
        new.generation().unwrap_err().to_string(),
        "it is Linux 6.1.0, and lguest left with 4.14"
    );
    assert!(!new.has_guest_support());
    assert_eq!(
        linux("2.6.22").generation().unwrap_err().to_string(),
        "it is Linux 2.6.22, and lguest came with 2.6.23"
    );
    let other = Kernel::parse(&vmlinux(b"a kernel of my own")).unwrap();
    assert_eq!(other.generation(), Err(NoGeneration::Unknown));
    assert_eq!(
        other.clone().with_generation(Generation::V4_0).unwrap().generation(),
        Ok(Generation::V4_0)
    );
    assert!(matches!(other.with_generation(Generation::First), Err(KernelError::NoSignature)));
}

#[test]
fn fuzz_bzimages_with_damage() {
    let files = ALL.map(usual);
    let old = bzimage(0x206, &packed(Compression::Gzip, &code_at_c0()));
    let files: Vec<Vec<u8>> = files.into_iter().chain([old]).collect();
    // Most of a file is code that isn't looked at: aim at the header and at the payload.
    let place = prop_oneof![0x1f0usize..0x270, SETUP + UNPACKING..SETUP + UNPACKING + 400];
    let damage = (
        0..files.len(),
        proptest::collection::vec((place, any::<u8>()), 0..8),
        proptest::option::weighted(0.1, any::<proptest::sample::Index>()),
    );
    for_a_while(&damage, |(file, changes, length)| {
        let mut file = files[file].clone();
        let size = file.len();
        changes.into_iter().for_each(|(at, value)| file[at % size] = value);
        file.truncate(length.map_or(size, |length| length.index(size)));
        if let Ok(kernel) = Kernel::parse(&file) {
            prop_assert!(kernel.end() <= 1 << 32);
            prop_assert!(!kernel.segments().is_empty());
        }
        Ok(())
    });
}
