"""Heads: what turns an embedding into a score of each class.

A trained head is a Linen module with parameters under "classifier"; what is known of
their layout is known here (`layout`). A closed-form head is a state in `ModelState` and
two functions: one that fits it after a task and one that scores embeddings, such as
`nearest_mean`. An analytic head would be one more of these: the Gram matrix and the
cross-products that it is fitted from are the method's own state, which
`Method.accumulate` adds up, and only its weights go into `ModelState`.
"""
