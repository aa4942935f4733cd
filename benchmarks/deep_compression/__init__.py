"""Deep Compression (Han, Mao and Dally, ICLR 2016), reproduced."""
