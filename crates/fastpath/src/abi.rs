//! Declaring types that cross the border between kernel and user space.
//!
//! A type declared through [`abi!`](crate::abi!) is `repr(C)`, has the size written beside its name, has
//! no padding and no invalid bit pattern, or it does not compile: `zerocopy` refuses to derive
//! `IntoBytes` for a struct with padding and `FromBytes` for a field such as `bool`, and a constant
//! assertion holds the size. Padding matters because a padded key puts uninitialised bytes into a hash
//! key, and look-ups then miss silently.

/// One field of an ABI type, as `abi.txt` records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name in the source.
    pub name: &'static str,
    /// Offset from the start of the type, in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// Layout of one ABI type, as `abi.txt` records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Name in the source.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Fields in order of their offset, explicit padding included.
    pub fields: &'static [Field],
}

/// Every type that kernel and user space share, in the order of `abi.txt`.
pub const LAYOUTS: &[Layout] = &[
    crate::flow::FlowKey::LAYOUT,
    crate::decide::PayloadTypes::LAYOUT,
    crate::decide::Admission::LAYOUT,
    crate::flow::FlowEntry::LAYOUT,
    crate::flow::FlowStats::LAYOUT,
    crate::rewrite::RtpEdit::LAYOUT,
    crate::gate::GateEntry::LAYOUT,
    crate::group::LegEntry::LAYOUT,
    crate::group::LegStats::LAYOUT,
    crate::flow::PortKey::LAYOUT,
    crate::event::Event::LAYOUT,
];

/// Declares an ABI type: `abi! { pub struct Name [size in bytes] { field: Type, .. } }`.
///
/// Fields are integers, byte arrays or other ABI types; padding is a field of its own.
#[macro_export]
macro_rules! abi {
    (
        $(#[$meta:meta])*
        pub struct $name:ident [$size:literal] {
            $( $(#[$field_meta:meta])* pub $field:ident : $ty:ty ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable,
        )]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )+
        }

        const _: () = assert!(
            ::core::mem::size_of::<$name>() == $size,
            concat!("size of ", stringify!($name), " is not ", stringify!($size))
        );

        impl $name {
            /// Layout of this type, for the golden record.
            pub const LAYOUT: $crate::abi::Layout = $crate::abi::Layout {
                name: stringify!($name),
                size: ::core::mem::size_of::<$name>(),
                align: ::core::mem::align_of::<$name>(),
                fields: &[
                    $( $crate::abi::Field {
                        name: stringify!($field),
                        offset: ::core::mem::offset_of!($name, $field),
                        size: ::core::mem::size_of::<$ty>(),
                    }, )+
                ],
            };
        }

        // SAFETY: `Pod` asks for a type that may be copied as bytes in both directions. The derives above
        // prove it: `IntoBytes` that there is no padding, `FromBytes` that every bit pattern is valid,
        // `Copy` that there is no drop glue, and the fields hold no references.
        #[cfg(feature = "user")]
        unsafe impl ::aya::Pod for $name {}
    };
}
