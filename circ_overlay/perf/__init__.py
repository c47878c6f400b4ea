# SPDX-License-Identifier: BSD-3-Clause
"""Models of what the core takes: clock cycles now. Every figure from here is labelled "modelled"."""
