//! The page that guest and Host share.

use lguest_abi::LguestData;

/// [`LguestData`], alone in a page of its own: the Host may watch the page for stores, and the
/// kernel's other data shouldn't pay for that.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct SharedPage {
    /// It comes first, and in it `irq_enabled`: the assembly relies on that.
    pub data: LguestData,
}

/// Where guest and Host meet. Its address is known when the kernel is linked.
pub static LGUEST_DATA: SharedPage = SharedPage { data: LguestData::new() };

const _: () = {
    assert!(core::mem::offset_of!(SharedPage, data) == 0);
    assert!(core::mem::offset_of!(LguestData, irq_enabled) == 0);
};
