//! The numbers of the NBD protocol, and its messages as bytes.

pub const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// `NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES`.
pub const CLIENT_FLAGS: u32 = 3;

pub const OPTION_EXPORT_NAME: u32 = 1;
pub const OPTION_ABORT: u32 = 2;
pub const OPTION_LIST: u32 = 3;
pub const OPTION_GO: u32 = 7;

pub const REPLY_ACK: u32 = 1;
pub const REPLY_INFO: u32 = 3;
pub const REPLY_ERROR: u32 = 1 << 31;
pub const INFO_EXPORT: u16 = 0;

pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

pub const COMMAND_FLAG_FUA: u16 = 1;
pub const COMMAND_FLAG_NO_HOLE: u16 = 1 << 1;

pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;

/// One request header, 28 bytes.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// One option, with the magic that precedes it.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("options are short").to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of `NBD_OPT_GO` for an export, asking for no extra information.
pub fn go_data(export: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(export.len()).expect("names are short").to_be_bytes().to_vec();
    bytes.extend(export.as_bytes());
    bytes.extend(0_u16.to_be_bytes());
    bytes
}
