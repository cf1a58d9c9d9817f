//! The safe, owned face of libibverbs, loaded at run time.
