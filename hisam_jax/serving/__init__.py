"""The HTTP service: releases, users' states, events that are kept, requests gathered into padded shapes."""
