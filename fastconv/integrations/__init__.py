# SPDX-License-Identifier: MIT
"""Small adapters to other libraries, each imported by itself."""
