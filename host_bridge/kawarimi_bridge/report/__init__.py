"""`kawarimi report`: what an operation did, as text, as one HTML file and as images.

`account` gathers what an operation has left behind, from its record or, where there is none, from
its journal; `traffic` makes rates of its samples. `tables` puts both into words once, for
`terminal` and `page` alike; `drawing` makes the images.
"""
