//! Steps 8 and 11, flip and boot: the GUID partition table as bytes.
